"""Which backend runs the selective scan: the one named, or the first that works."""

from __future__ import annotations

import os
import warnings

import torch

from mammo_utils.models.kernels import announce

BACKENDS = ("auto", "reference", "cpu", "mamba_ssm", "triton")
GPU = "cuda"  # the type of device that "mamba_ssm" and "triton" need
_found: dict[str, str] = {}  # type of device -> the backend that works there; torch.compile can read it


def pick_backend(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return the backend that runs on tensors of this device and dtype.

    "auto" is "cpu" on a CPU and on a GPU the first that works of "mamba_ssm", "triton" and "reference", found once per
    process. For float64 it is "reference".

    Args:
        backend: One of `BACKENDS`.
        device: Of the tensors.
        dtype: Of the tensors.

    Raises:
        ValueError: The named backend does not exist or cannot scan such tensors.
    """
    if backend not in BACKENDS:
        raise ValueError(f"There is no backend {backend!r}; accepted are {', '.join(BACKENDS)}.")
    if backend == "auto":
        if dtype == torch.float64 or device.type not in (GPU, "cpu"):
            return "reference"
        if device.type == GPU:
            return _found.get(GPU) or _find_backend(device)
        return "cpu"
    if backend != "reference" and dtype == torch.float64:
        raise ValueError(f"The backend {backend!r} scans in float32; use backend='reference' for float64.")
    needed = {"cpu": "cpu", "mamba_ssm": GPU, "triton": GPU}.get(backend, device.type)
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        needed = device.type  # for tests: Triton's interpreter runs its kernels on any device, slowly
    if device.type != needed:
        raise ValueError(f"The backend {backend!r} needs tensors on {needed}, these are on {device.type}.")
    return backend


def _find_backend(device: torch.device) -> str:
    """Return the first backend for a GPU that works, and print why others do not."""
    failures = []
    for backend in ("mamba_ssm", "triton"):
        try:
            with announce(f"the scan by {backend}"):
                _try_backend(backend, device)
        except Exception as error:  # a package that does not fit torch or the driver raises whatever it likes
            failures.append(f"{backend} does not work ({' '.join(str(error).split())[:200]})")
            continue
        if failures:
            print(f"The scans run by {backend}: {failures[0]}.", flush=True)
        _found[GPU] = backend
        return backend
    warnings.warn(
        f"The scans run by the reference: {'; '.join(failures)}. It takes a step of Python per pixel, seconds a batch "
        "at 512 px, and in training some 170 kB of memory per pixel and image.",
        stacklevel=2,
    )
    _found[GPU] = "reference"
    return "reference"


def _try_backend(backend: str, device: torch.device) -> None:
    """Raise unless the backend agrees with the reference on a small image, output and gradients."""
    from mammo_utils.models.selective_scan import scan_paths

    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 6, 4), (1, 2, 6, 4), (2, 4, 2), (1, 2, 6, 2), (1, 2, 6, 2), (2, 4), (2, 4)]
    values = [torch.rand(shape, generator=generator).to(device) for shape in shapes]
    values[2] = -values[2]
    path = torch.arange(6, device=device)
    results = []
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for name in (backend, "reference"):
            leaves = [x.clone().requires_grad_() for x in values]
            y = scan_paths(*leaves, torch.stack([path, path.flip(0)]), backend=name)
            results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*results, strict=True)):
        raise ValueError("its results are wrong")
