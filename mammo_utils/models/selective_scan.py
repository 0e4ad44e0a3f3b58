"""The selective scan of a state space model (S6), Eq. 5-6 of the paper, one function with several backends.

With h_0 = 0, for each channel, and x_t = u_t:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t h_t + D u_t

This is the form that Mamba's kernel and so MedMamba run; the paper's Eq. 5 is the exact zero-order hold of B,
which the reference has as an option. Signature and shapes are those of mamba-ssm's ``selective_scan_fn``
(Gu and Dao 2023), so that the one can stand in for the other.
"""

from __future__ import annotations

import os
from functools import cache, lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("auto", "reference", "cpu", "mamba_ssm", "triton")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str = "auto",
    discretisation: str = "simplified",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan D channels of length L with N states each.

    u, delta: (batch, D, L). A: (D, N), real. B, C: (D, N) constant in time, (batch, N, L) shared by all
    channels, or (batch, G, N, L) shared by each of G groups of D/G neighbouring channels. D, delta_bias: (D,).
    z: (batch, D, L), a gate: y becomes y * silu(z). delta_softplus: delta becomes log(1 + exp(delta)) after
    the bias. Half precision is scanned in float32.

    Returns y (batch, D, L) in u's dtype, and the state after the last step (batch, D, N) if asked for.

    backend: ``reference`` plain torch, any device and dtype; ``cpu`` compiled by numba; ``mamba_ssm`` its CUDA
    kernel (its backward ignores the last state); ``auto`` see :func:`pick_backend`.
    discretisation: ``simplified`` as above or ``exact``, Eq. 5, of the reference alone.
    Raises ValueError with one sentence for shapes or backends that do not fit.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    if discretisation not in ("simplified", "exact"):
        raise ValueError(f"discretisation is {discretisation!r}; it must be 'simplified' or 'exact'.")
    if discretisation == "exact" and backend == "auto":
        backend = "reference"
    backend = pick_backend(backend, u.device, u.dtype)
    if backend == "triton":
        raise ValueError("The backend 'triton' scans images alone (scan_paths); take 'mamba_ssm' or 'reference' here.")
    if discretisation == "exact" and backend != "reference":
        raise ValueError(f"The backend {backend!r} has no exact discretisation; use backend='reference'.")
    if backend == "mamba_ssm":
        y, last = _mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    else:
        scan = reference_scan if backend == "reference" else _cpu_scan
        options = {"discretisation": discretisation} if backend == "reference" else {}
        work = torch.promote_types(u.dtype, torch.float32)
        y, last = scan(*_cast(work, u, delta, A, B, C, D, delta_bias), delta_softplus, **options)
        y = (y if z is None else y * F.silu(z.to(work))).to(u.dtype)
    return (y, last) if return_last_state else y


def scan_paths(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    paths: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Scan one image along K paths with softplus on delta, and add the K outputs: the core of SS2D.

    u: (batch, L, D), pixel by pixel. delta: (batch, K, L, D). A: (K, D, N). B, C: (batch, K, L, N).
    D, delta_bias: (K, D). paths: (K, L) int64 on u's device, the pixel that path k visits at step t, each pixel
    once. All arrays are indexed by pixel, not by step. Returns (batch, L, D) in float32 (float64 for float64).

    backend: as in :func:`selective_scan`, or ``triton``, a GPU kernel that reads the image in place; its paths
    are K/2 paths and then the same ones reversed. ``cpu`` makes no copy of the image either; the other two
    make one of each array a path, in the order and layout of the scan, and one of the output back.
    Raises ValueError with one sentence for what does not fit.
    """
    _check_image(u, delta, A, B, C, D, delta_bias, paths)
    batch, length, channels = u.shape
    K, _, states = A.shape
    backend = pick_backend(backend, u.device, u.dtype)
    inverse = _inverse(paths, paths._version)  # on every backend: this also checks the paths
    if backend == "triton":
        from mammo_utils.models.kernels.triton_kernel import Scan2D

        if not _reversed_second(paths, paths._version):
            raise ValueError("The backend 'triton' scans K/2 paths and then the same ones reversed, not these paths.")
        A, D, delta_bias = _cast(torch.float32, A.transpose(1, 2), D, delta_bias)
        return Scan2D.apply(u, delta, A, B, C, D.contiguous(), delta_bias.contiguous(), paths[: K // 2])
    u, delta, A, B, C, D, delta_bias = _cast(
        torch.promote_types(u.dtype, torch.float32), u, delta, A, B, C, D, delta_bias
    )
    if backend == "cpu":
        from mammo_utils.models.kernels.cpu import Scan

        y, _ = Scan.apply(u[:, None], delta, A.transpose(1, 2), B, C, None, D, delta_bias, True, paths)
        return y[:, 0]

    def along(x):  # (batch, K or 1, L, E) by pixel -> (batch, K, E, L) by step
        x = x.transpose(2, 3).expand(-1, K, -1, -1)
        return Reordered.apply(x, paths[:, None].expand_as(x), inverse[:, None].expand_as(x))

    y = selective_scan(
        along(u[:, None]).view(batch, K * channels, length),
        along(delta).view(batch, K * channels, length),
        A.reshape(K * channels, states),
        along(B),
        along(C),
        D.reshape(-1),
        delta_bias=delta_bias.reshape(-1),
        delta_softplus=True,
        backend=backend,
    )
    y = y.view(batch, K, channels, length)  # by step; back to pixels:
    y = Reordered.apply(y, inverse[:, None].expand_as(y), paths[:, None].expand_as(y)).sum(1)
    return y.transpose(1, 2)


class Reordered(torch.autograd.Function):
    """x along its last dimension in another order, which visits every place once: one copy, whatever x's strides.

    order, inverse: int64, expanded to x's shape. The gradient is the same by the inverse order, where gather's own
    would fill an array of zeros and add atomically.
    """

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(order, inverse)
        return x.gather(-1, order)

    @staticmethod
    def backward(ctx, g):
        order, inverse = ctx.saved_tensors
        return Reordered.apply(g, inverse, order), None, None


# Checks of paths are cached, because each forces a GPU synchronisation; the key holds the tensor's version, so that
# paths changed in place are checked again. They run outside inference mode, whose tensors autograd cannot save.


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _inverse(paths: Tensor, version: int) -> Tensor:
    """The step at which path k visits each pixel, (K, L). Raises ValueError where it is not one step for each:
    compiled kernels index memory by the paths and check nothing."""
    visited, inverse = paths.sort(1)
    if not torch.equal(visited, torch.arange(paths.shape[1], device=paths.device).expand_as(paths)):
        raise ValueError(f"paths must each visit the pixels 0 to {paths.shape[1] - 1} once.")
    return inverse


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _reversed_second(paths: Tensor, version: int) -> bool:
    """Whether the second half of the paths is the first half reversed."""
    half = len(paths) // 2
    return len(paths) % 2 == 0 and torch.equal(paths[half:], paths[:half].flip(1))


def pick_backend(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that `auto` means: on a CPU ``cpu`` (float64: ``reference``), on a GPU ``mamba_ssm``.

    On a GPU without mamba-ssm it is the reference. ``triton`` is never picked: it has not been measured that it
    wins. Raises ValueError where a named one cannot do the work.
    """
    if backend not in BACKENDS:
        raise ValueError(f"There is no backend {backend!r}; accepted are {', '.join(BACKENDS)}.")
    if backend == "auto":
        if device.type == "cuda" and find_spec("mamba_ssm") is not None and dtype != torch.float64:
            return "mamba_ssm"
        return "cpu" if device.type == "cpu" and dtype != torch.float64 else "reference"
    if backend != "reference" and dtype == torch.float64:
        raise ValueError(f"The backend {backend!r} scans in float32; use backend='reference' for float64.")
    needed = {"cpu": "cpu", "mamba_ssm": "cuda", "triton": "cuda"}.get(backend, device.type)
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        needed = device.type  # Triton's interpreter runs its kernels anywhere, slowly: for tests
    if device.type != needed:
        raise ValueError(f"The backend {backend!r} needs tensors on {needed}, these are on {device.type}.")
    return backend


def reference_scan(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, discretisation="simplified"):
    """Eq. 5-6 step by step in the dtype of the inputs; shapes as in :func:`selective_scan`.

    Its backward keeps every state, L x D x N numbers: the yardstick, not for training.
    """
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    B, C = (per_channel(x, u) for x in (B, C))  # (batch, D, N, L), expanded
    h = u.new_zeros(u.shape[0], *A.shape)  # (batch, D, N)
    ys = []
    # unbound once: a slice a step would make the backward quadratic in L
    for u_t, delta_t, B_t, C_t in zip(u.unbind(2), delta.unbind(2), B.unbind(3), C.unbind(3), strict=True):
        dA = delta_t[:, :, None] * A  # (batch, D, N)
        B_bar = delta_t[:, :, None] * B_t
        if discretisation == "exact":  # (dA)^-1 (exp(dA) - 1) (delta B); the factor tends to 1 with dA to 0
            flat = dA == 0
            B_bar = B_bar * torch.where(flat, 1.0, torch.expm1(dA) / torch.where(flat, 1.0, dA))
        h = torch.exp(dA) * h + B_bar * u_t[:, :, None]
        ys.append((h * C_t).sum(-1))
    y = torch.stack(ys, dim=2)
    return (y if D is None else y + D[:, None] * u), h


def per_channel(x: Tensor, u: Tensor) -> Tensor:
    """B or C in any of its three shapes as (batch, D, N, L)."""
    batch, channels, length = u.shape
    if x.dim() == 2:
        return x[None, :, :, None].expand(batch, -1, -1, length)
    x = _grouped(x)
    return x[:, :, None].expand(-1, -1, channels // x.shape[1], -1, -1).flatten(1, 2)


def _grouped(x: Tensor) -> Tensor:
    """A B or C that varies in time as (batch, G, N, L)."""
    return x[:, None] if x.dim() == 3 else x


def _cpu_scan(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False):
    """Bring mamba-ssm's shapes into those of the kernel: groups as paths, all of them 0, 1, ..., L - 1.

    A constant B or C becomes 1 in the scan and a factor of state n of channel d in the output.
    """
    from mammo_utils.models.kernels.cpu import Scan

    batch, channels, length = u.shape
    states = A.shape[1]
    groups = max(x.shape[1] if x.dim() == 4 else 1 for x in (B, C))
    W = None
    for constant in (x for x in (B, C) if x.dim() == 2):
        W = constant if W is None else W * constant

    def split(x):  # (batch, D, L) -> (batch, G, L, D/G)
        return x.reshape(batch, groups, channels // groups, length).transpose(2, 3)

    def by_group(x):  # (D, ...) -> (G, ..., D/G)
        return None if x is None else x.reshape(groups, channels // groups, -1).transpose(1, 2)

    def varying(x):  # -> (batch, G, L, N)
        if x.dim() == 2:
            return u.new_ones(1).expand(batch, groups, length, states)
        return _grouped(x).transpose(2, 3).expand(-1, groups, -1, -1)

    path = torch.arange(length).expand(groups, -1)
    D, delta_bias = (None if x is None else x.reshape(groups, -1) for x in (D, delta_bias))
    inputs = (split(u), split(delta), by_group(A), varying(B), varying(C), by_group(W), D, delta_bias)
    y, last = Scan.apply(*inputs, delta_softplus, path)
    y = y.transpose(2, 3).reshape(batch, channels, length)
    last = last.transpose(2, 3).reshape(batch, channels, states)
    return y, (last * B if B.dim() == 2 else last)


def _mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """Hand mamba-ssm's kernel what it takes: one number of groups for all that varies in time, in u's dtype; all
    weights in float32; a bias without gaps."""
    if A.shape[1] > 256:
        raise ValueError(f"The backend 'mamba_ssm' scans at most 256 states, not {A.shape[1]}; use 'reference'.")
    groups = max(x.shape[1] if x.dim() == 4 else 1 for x in (B, C))
    if groups > 1 and B.dim() == 2:  # it counts groups by B, a constant one as one: each channel its own group
        B, C = per_channel(B, u), per_channel(C, u)
    elif groups > 1:
        B, C = (x if x.dim() == 2 else _grouped(x).expand(-1, groups, -1, -1) for x in (B, C))
    B, C = (x.to(torch.float32 if x.dim() == 2 else u.dtype) for x in (B, C))
    delta, z = _cast(u.dtype, delta, z)
    A, D, delta_bias = _cast(torch.float32, A, D, delta_bias)
    delta_bias = None if delta_bias is None else delta_bias.contiguous()
    return _mamba_ssm()(u, delta, A, B, C, D, z, delta_bias, delta_softplus, True)


@cache
def _mamba_ssm():
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        raise ValueError(
            f"The backend 'mamba_ssm' cannot be imported ({error}); install mamba-ssm or take another."
        ) from error
    return selective_scan_fn


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.to(dtype) for x in tensors]


def _check(u, delta, A, B, C, D, z, delta_bias) -> None:
    if u.dim() != 3 or min(u.shape) < 1:
        raise ValueError(f"u has the shape {tuple(u.shape)}; it must be (batch, D, L), none of them 0.")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels or A.is_complex():
        raise ValueError(f"A has the shape {tuple(A.shape)} and {A.dtype}; it must be real, (D={channels}, N).")
    states = A.shape[1]
    shapes = {
        "delta": (delta, u.shape),
        "z": (z, u.shape),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
    }
    _check_shapes(shapes)
    for name, x in (("B", B), ("C", C)):
        groups = x.shape[1] if x.dim() == 4 else 1
        accepted = {2: (channels, states), 3: (batch, states, length), 4: (batch, groups, states, length)}
        if x.is_complex() or x.shape != accepted.get(x.dim()) or groups < 1 or channels % groups:
            raise ValueError(
                f"{name} has the shape {tuple(x.shape)}; it must be real, ({channels}, {states}), ({batch}, {states}, "
                f"{length}) or ({batch}, G, {states}, {length}) with G dividing {channels}."
            )
    if B.dim() == C.dim() == 4 and B.shape[1] != C.shape[1] and 1 not in (B.shape[1], C.shape[1]):
        raise ValueError(f"B has {B.shape[1]} groups and C has {C.shape[1]}; they must agree.")


def _check_image(u, delta, A, B, C, D, delta_bias, paths) -> None:
    """The shapes of scan_paths: compiled kernels read beyond a smaller array."""
    if u.dim() != 3 or min(u.shape) < 1:
        raise ValueError(f"u has the shape {tuple(u.shape)}; it must be (batch, L, D), none of them 0.")
    batch, length, channels = u.shape
    if A.dim() != 3 or A.shape[1] != channels or min(A.shape) < 1 or A.is_complex():
        raise ValueError(f"A has the shape {tuple(A.shape)} and {A.dtype}; it must be real, (K, D={channels}, N).")
    K, _, states = A.shape
    shapes = {
        "delta": (delta, (batch, K, length, channels)),
        "B": (B, (batch, K, length, states)),
        "C": (C, (batch, K, length, states)),
        "D": (D, (K, channels)),
        "delta_bias": (delta_bias, (K, channels)),
        "paths": (paths, (K, length)),
    }
    _check_shapes(shapes)
    if paths.dtype != torch.int64 or paths.device != u.device:
        raise ValueError(f"paths are {paths.dtype} on {paths.device}; they must be torch.int64 on {u.device}.")


def _check_shapes(shapes: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must be {tuple(shape)}.")
