"""The CUDA kernel of mamba-ssm (Gu and Dao 2023) as a differentiable operator of torch.

Its compiled module `selective_scan_cuda` is all that is needed. The Python package around it imports much else, and one
import that fails there would take the kernel away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import library

from mammo_utils.models.kernels import refuse_second_derivative, refuse_vmap

CHUNK = 2048  # steps between the states that the kernel stores
SCAN, BACKWARD = "mammo_utils::scan_by_mamba_ssm", "mammo_utils::scan_by_mamba_ssm_backward"
INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? bias, bool use_softplus"
library.define(SCAN, f"({INPUTS}) -> (Tensor, Tensor)")
library.define(BACKWARD, f"({INPUTS}, Tensor states, Tensor dy) -> Tensor[]")
scan = torch.ops.mammo_utils.scan_by_mamba_ssm


def import_kernel() -> Any:
    """Return the module `selective_scan_cuda`, or raise ValueError if it cannot be imported."""
    try:
        import selective_scan_cuda
    except (ImportError, OSError) as error:
        raise ValueError(
            f"The backend 'mamba_ssm' cannot be imported ({error}); install mamba-ssm with its kernel, or use another."
        ) from error
    return selective_scan_cuda


def _call(function: Callable, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except TypeError:  # versions after 2.3 take one more argument, the borders of packed sequences
        return function(*arguments, None)


@library.impl(SCAN, "default")
def _scan(u, delta, A, B, C, D, bias, use_softplus):
    """Scan as mamba-ssm's `selective_scan_fn` does; return y and the states that the backward starts from."""
    y, states = _call(import_kernel().fwd, u, delta, A, B, C, D, None, bias, use_softplus)
    return y, states


@library.register_fake(SCAN)
def _make_outputs(u, delta, A, *_):
    chunks = (u.shape[2] + CHUNK - 1) // CHUNK
    return torch.empty_like(delta), A.new_empty(*u.shape[:2], chunks, 2 * A.shape[1])


@library.impl(BACKWARD, "default")
def _scan_backward(u, delta, A, B, C, D, bias, use_softplus, states, dy):
    gradients = _call(
        import_kernel().bwd, u, delta, A, B, C, D, None, bias, dy, states, None, None, use_softplus, False
    )
    return [u.new_empty(0) if x is None else x for x in gradients[:7]]


@library.register_fake(BACKWARD)
def _make_gradients(u, delta, A, B, C, D, bias, *_):
    return [u.new_empty(0) if x is None else torch.empty_like(x) for x in (u, delta, A, B, C, D, bias)]


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.use_softplus = inputs
    ctx.save_for_backward(*tensors, output[1])


def _differentiate(ctx, dy, _):
    *tensors, states = ctx.saved_tensors
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    gradients = torch.ops.mammo_utils.scan_by_mamba_ssm_backward(*tensors, ctx.use_softplus, states, dy)
    return *(None if x is None else g for x, g in zip(tensors, gradients, strict=True)), None


library.register_autograd(SCAN, _differentiate, setup_context=_keep)
library.register_autograd(BACKWARD, refuse_second_derivative)
for _name in (SCAN, BACKWARD):
    library.register_vmap(_name, refuse_vmap)
