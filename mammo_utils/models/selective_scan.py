"""The selective scan of a state space model (S6), Eq. 5-6 of the paper: one function, several backends.

With h_0 = 0, for each channel, and the paper's x_t called u_t:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t h_t + D u_t

Mamba's kernel, and so MedMamba, runs this form. The paper's Eq. 5 is the exact zero-order hold of B, an option of the
reference. Signature and shapes are those of mamba-ssm's `selective_scan_fn` (Gu and Dao 2023), so that either function
can replace the other.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mammo_utils.models.backends import pick_backend


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
    """Scan D channels of length L with N states each (Eq. 6). Half precision is scanned in float32.

    Args:
        u: Input (batch, D, L).
        delta: Step sizes (batch, D, L), the paper's Δ.
        A: (D, N), real.
        B: (D, N) constant in time, (batch, N, L) shared by all channels, or (batch, G, N, L) shared by each of G groups
            of D/G neighbouring channels.
        C: Like B.
        D: Skip connection (D,), none if None.
        z: Gate (batch, D, L): y becomes y * silu(z).
        delta_bias: (D,), added to delta.
        delta_softplus: Whether delta becomes log(1 + exp(delta)), after the bias.
        return_last_state: Whether to return the state after the last step, too.
        backend: "reference" is plain torch for any device and dtype; "cpu" is compiled by numba; "mamba_ssm" is that
            package's CUDA kernel, whose backward ignores the last state; for "auto" see `pick_backend`.
        discretisation: "simplified" as above, or "exact" (Eq. 5), which only the reference has.

    Returns:
        y (batch, D, L) in u's dtype, and the last state (batch, D, N) if requested.

    Raises:
        ValueError: A dtype, a device, a shape or the backend does not fit; the message names it.
    """
    _check_sequences(u, delta, A, B, C, D, z, delta_bias)
    if discretisation not in ("simplified", "exact"):
        raise ValueError(f"discretisation is {discretisation!r}; it must be 'simplified' or 'exact'.")
    chosen, backend = backend, pick_backend(backend, u.device, u.dtype)
    if chosen == "auto" and (discretisation == "exact" or backend == "triton"):
        backend = "reference"  # the only one that has both
    if backend == "triton":
        raise ValueError("The backend 'triton' only scans images (scan_paths); use 'mamba_ssm' or 'reference' here.")
    if discretisation == "exact" and backend != "reference":
        raise ValueError(f"The backend {backend!r} has no exact discretisation; use backend='reference'.")
    B, C = (x[:, None] if x.dim() == 3 else x for x in (B, C))  # one group: (batch, 1, N, L)
    work = torch.promote_types(u.dtype, torch.float32)
    if backend == "mamba_ssm":
        y, last = _scan_by_mamba_ssm(u, delta, A, B, C, D, delta_bias, delta_softplus)
    else:
        inputs = _cast(work, u, delta, A, B, C, D, delta_bias)
        if backend == "cpu":
            y, last = _scan_on_cpu(*inputs, delta_softplus)
        else:
            y, last = _scan_by_reference(*inputs, delta_softplus, discretisation)
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
    inverse: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Scan images along K paths with softplus on delta, and add up the K outputs: the core of SS2D.

    All arrays are indexed by pixel, not by step. "cpu" and "triton" read the image in place; the other backends make
    one copy of each array per path, in the order and layout of the scan, and one of the output.

    Args:
        u: Images (batch, L, D), one row per pixel.
        delta: (batch, K, L, D).
        A: (K, D, N).
        B: (batch, K, L, N).
        C: (batch, K, L, N).
        D: (K, D).
        delta_bias: (K, D).
        paths: (K, L) int64 on u's device: the pixel that path k visits at step t, each pixel once.
        inverse: (K, L), the step at which each path visits each pixel, if the caller vouches for both. Then the paths
            are not checked, which would wait for a GPU and break a compiled graph.
        backend: As in `selective_scan`, or "triton", a GPU kernel whose paths are K/2 paths, then the same reversed.

    Returns:
        (batch, L, D) in float32 (float64 for float64).

    Raises:
        ValueError: A dtype, a device, a shape, the paths or the backend do not fit; the message names them.
    """
    _check_images(u, delta, A, B, C, D, delta_bias, paths)
    backend = pick_backend(backend, u.device, u.dtype)
    if inverse is None:
        if paths.is_inference():  # such tensors have no version, and autograd cannot save them
            with torch.inference_mode(False):
                paths = paths.clone()
            inverse, paired = _check_paths.__wrapped__(paths, 0)
        else:
            inverse, paired = _check_paths(paths, paths._version)
        if backend == "triton" and not paired:
            raise ValueError("The backend 'triton' scans K/2 paths and then the same ones reversed, not these paths.")
    batch, length, channels = u.shape
    K, _, states = A.shape
    if backend == "triton":
        from mammo_utils.models.kernels import triton_kernel

        A, D, delta_bias = _cast(torch.float32, A.transpose(1, 2), D, delta_bias)  # A (K, N, D)
        return triton_kernel.scan(u, delta, A, B, C, D, delta_bias, paths[: K // 2])[0]
    work = torch.promote_types(u.dtype, torch.float32)
    u, delta, A, B, C, D, delta_bias = _cast(work, u, delta, A, B, C, D, delta_bias)
    if backend == "cpu":
        from mammo_utils.models.kernels import cpu

        y, *_ = cpu.scan(u[:, None], delta, A.transpose(1, 2), B, C, None, D, delta_bias, True, paths)
        return y[:, 0]  # (batch, 1, L, D) -> (batch, L, D)

    def order_by_step(x: Tensor) -> Tensor:  # (batch, K or 1, L, F) by pixel -> (batch, K, F, L) by step
        x = x.transpose(2, 3).expand(-1, K, -1, -1)  # (batch, K, F, L)
        return Reorder.apply(x, paths[:, None].expand_as(x), inverse[:, None].expand_as(x))

    y = selective_scan(
        order_by_step(u[:, None]).view(batch, K * channels, length),
        order_by_step(delta).view(batch, K * channels, length),
        A.reshape(K * channels, states),
        order_by_step(B),  # (batch, K, N, L): each path is a group of channels
        order_by_step(C),
        D.reshape(-1),
        delta_bias=delta_bias.reshape(-1),
        delta_softplus=True,
        backend=backend,
    ).view(batch, K, channels, length)  # by step
    y = Reorder.apply(y, inverse[:, None].expand_as(y), paths[:, None].expand_as(y))  # by pixel
    return y.sum(1).transpose(1, 2)  # (batch, D, L) -> (batch, L, D)


class Reorder(torch.autograd.Function):
    """Reorder x along its last dimension: one copy, whatever the strides of x.

    The order, int64 in x's shape, visits each place once. The gradient is then the same copy in the inverse order,
    where the backward of `gather` would fill an array of zeros and add atomically.
    """

    @staticmethod
    def forward(ctx, x, order, inverse):
        """Return x[..., order]."""
        ctx.save_for_backward(order, inverse)
        return x.gather(-1, order)

    @staticmethod
    def backward(ctx, g):
        """Return the gradient of x."""
        order, inverse = ctx.saved_tensors
        return Reorder.apply(g, inverse, order), None, None


# Cached, because each check waits for the GPU. The version, a part of the key, counts a tensor's in-place changes, so
# that changed paths are checked again; it misses changes through `.data` or numpy.
@lru_cache(maxsize=64)
@torch.inference_mode(False)  # autograd cannot save tensors that are made in inference mode
def _check_paths(paths: Tensor, version: int) -> tuple[Tensor, bool]:
    """Return the step at which path k visits each pixel (K, L), and whether the second half reverses the first.

    Raises ValueError unless each pixel is visited once: the compiled kernels index memory by the paths, unchecked.
    """
    visited, inverse = paths.sort(1)
    if not torch.equal(visited, torch.arange(paths.shape[1], device=paths.device).expand_as(paths)):
        raise ValueError(f"paths must each visit the pixels 0 to {paths.shape[1] - 1} once.")
    half = len(paths) // 2
    return inverse, len(paths) % 2 == 0 and torch.equal(paths[half:], paths[:half].flip(1))


def _scan_by_reference(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, discretisation="simplified"):
    """Run Eq. 5-6 step by step in the dtype of the inputs; B and C are (D, N) or (batch, G, N, L).

    Its backward keeps every state, L x D x N numbers, several times: it is the yardstick, slow and large in training.
    """
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    B, C = (_expand_to_channels(x, u) for x in (B, C))  # (batch, D, N, L)
    h = u.new_zeros(u.shape[0], *A.shape)  # (batch, D, N)
    ys = []
    # Unbound once, because slicing at each step would make the backward quadratic in L.
    for u_t, delta_t, B_t, C_t in zip(u.unbind(2), delta.unbind(2), B.unbind(3), C.unbind(3), strict=True):
        dA = delta_t[:, :, None] * A  # (batch, D, N), the paper's ΔA
        B_bar = delta_t[:, :, None] * B_t
        if discretisation == "exact":  # (dA)^-1 (exp(dA) - 1) (delta B); the factor tends to 1 as dA tends to 0
            flat = dA == 0
            B_bar = B_bar * torch.where(flat, 1.0, torch.expm1(dA) / torch.where(flat, 1.0, dA))
        h = torch.exp(dA) * h + B_bar * u_t[:, :, None]
        ys.append((h * C_t).sum(-1))  # (batch, D)
    y = torch.stack(ys, dim=2)  # (batch, D, L)
    return (y if D is None else y + D[:, None] * u), h


def _expand_to_channels(x: Tensor, u: Tensor) -> Tensor:
    """Expand B or C, (D, N) or (batch, G, N, L), to (batch, D, N, L)."""
    batch, channels, length = u.shape
    if x.dim() == 2:
        return x[None, :, :, None].expand(batch, -1, -1, length)
    x = x[:, :, None].expand(-1, -1, channels // x.shape[1], -1, -1)  # (batch, G, D/G, N, L)
    return x.flatten(1, 2)


def _scan_on_cpu(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """Bring mamba-ssm's shapes into those of the CPU kernel: each group is a path that visits 0, 1, ..., L - 1."""
    from mammo_utils.models.kernels import cpu

    batch, _, length = u.shape
    groups = max(x.shape[1] if x.dim() == 4 else 1 for x in (B, C))
    W = None  # a constant B or C becomes 1 in the scan and a factor of state n of channel d in the output
    for constant in (x for x in (B, C) if x.dim() == 2):
        W = constant if W is None else W * constant
    ones = u.new_ones(1).expand(batch, groups, length, A.shape[1])
    rates = [ones if x.dim() == 2 else x.transpose(2, 3).expand(-1, groups, -1, -1) for x in (B, C)]  # (batch, G, L, N)
    u, delta = (x.unflatten(1, (groups, -1)).transpose(2, 3) for x in (u, delta))  # (batch, G, L, D/G)
    A, W, D, delta_bias = (None if x is None else x.unflatten(0, (groups, -1)) for x in (A, W, D, delta_bias))
    A, W = (None if x is None else x.transpose(1, 2) for x in (A, W))  # (G, D/G, N) -> (G, N, D/G)
    path = torch.arange(length).expand(groups, -1)
    y, last, _ = cpu.scan(u, delta, A, *rates, W, D, delta_bias, delta_softplus, path)
    y = y.transpose(2, 3).flatten(1, 2)  # (batch, G, L, D/G) -> (batch, D, L)
    last = last.transpose(2, 3).flatten(1, 2)  # (batch, G, N, D/G) -> (batch, D, N)
    return y, (last * B if B.dim() == 2 else last)


def _scan_by_mamba_ssm(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """Run mamba-ssm's kernel, which takes one number of groups, on inputs of the dtypes and strides that it takes."""
    from mammo_utils.models.kernels import mamba_kernel

    if A.shape[1] > 256:
        raise ValueError(f"The backend 'mamba_ssm' scans at most 256 states, not {A.shape[1]}; use 'reference'.")
    groups = max(x.shape[1] if x.dim() == 4 else 1 for x in (B, C))
    if groups > 1 and B.dim() == 2:  # the kernel counts the groups of B, 1 if constant: make each channel a group
        B, C = _expand_to_channels(B, u), _expand_to_channels(C, u)
    elif groups > 1:
        B, C = (x if x.dim() == 2 else x.expand(-1, groups, -1, -1) for x in (B, C))
    B, C = (x.to(torch.float32 if x.dim() == 2 else u.dtype) for x in (B, C))
    delta = delta.to(u.dtype)  # all that varies in time has u's dtype, the rest is float32
    A, D, delta_bias = _cast(torch.float32, A, D, delta_bias)
    u, delta, B, C, D, delta_bias = (
        x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (u, delta, B, C, D, delta_bias)
    )
    y, states = mamba_kernel.scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return y, states[:, :, -1, 1::2]  # (batch, D, chunks, 2N) -> (batch, D, N)


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.to(dtype) for x in tensors]


def _check_sequences(u, delta, A, B, C, D, z, delta_bias) -> None:
    """Check the tensors of `selective_scan`."""
    _require_numbers(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    _require(u.dim() == 3 and u.numel() > 0, "u", u, "(batch, D, L), none of them 0")
    batch, channels, length = u.shape
    _require(A.dim() == 2 and len(A) == channels and A.numel() > 0, "A", A, f"(D={channels}, N), N not 0")
    states = A.shape[1]
    _require_shapes(delta=(delta, u.shape), z=(z, u.shape), D=(D, (channels,)), delta_bias=(delta_bias, (channels,)))
    accepted = f"({channels}, {states}), ({batch}, {states}, {length}) or ({batch}, G, {states}, {length})"
    for name, x in (("B", B), ("C", C)):
        groups = x.shape[1] if x.dim() == 4 else 1
        shapes = {2: (channels, states), 3: (batch, states, length), 4: (batch, groups, states, length)}
        fits = x.shape == shapes.get(x.dim()) and groups > 0 and channels % groups == 0
        _require(fits, name, x, f"{accepted} with G dividing {channels}")
    if B.dim() == C.dim() == 4 and B.shape[1] != C.shape[1] and 1 not in (B.shape[1], C.shape[1]):
        raise ValueError(f"B has {B.shape[1]} groups and C has {C.shape[1]}; they must agree.")


def _check_images(u, delta, A, B, C, D, delta_bias, paths) -> None:
    """Check the tensors of `scan_paths`, because the compiled kernels would read beyond a smaller array."""
    _require_numbers(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    _require(u.dim() == 3 and u.numel() > 0, "u", u, "(batch, L, D), none of them 0")
    batch, length, channels = u.shape
    fits = A.dim() == 3 and A.shape[1] == channels and A.numel() > 0
    _require(fits, "A", A, f"(K, D={channels}, N), none of them 0")
    K, _, states = A.shape
    B_shape, D_shape = (batch, K, length, states), (K, channels)
    _require_shapes(delta=(delta, (batch, K, length, channels)), B=(B, B_shape), C=(C, B_shape))
    _require_shapes(D=(D, D_shape), delta_bias=(delta_bias, D_shape), paths=(paths, (K, length)))
    if paths.dtype != torch.int64 or paths.device != u.device:
        raise ValueError(f"paths are {paths.dtype} on {paths.device}; they must be torch.int64 on {u.device}.")


def _require_numbers(u: Tensor, **others: Tensor | None) -> None:
    """Check that all tensors are real floating point numbers on one device."""
    for name, x in {"u": u, **others}.items():
        if x is not None and not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}; it must be a real floating point tensor.")
        if x is not None and x.device != u.device:
            raise ValueError(f"{name} is on {x.device} and u on {u.device}; they must be on one device.")


def _require_shapes(**tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    for name, (tensor, shape) in tensors.items():
        _require(tensor is None or tensor.shape == shape, name, tensor, f"{tuple(shape)}")


def _require(fits: bool, name: str, tensor: Tensor | None, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must be {expected}.")
