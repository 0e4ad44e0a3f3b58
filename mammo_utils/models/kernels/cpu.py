"""The numba kernels as a differentiable operator of torch, run on several threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, library

from mammo_utils.models.kernels import numba_kernel as kernels
from mammo_utils.models.kernels import refuse_second_derivative, refuse_vmap

LEAST_WORK = 100_000  # state updates below which starting a thread costs more than it gains

# Operators by torch.library's functions, because a call of its class `custom_op` imports torch._dynamo, 110 MB.
SCAN, BACKWARD = "mammo_utils::scan_on_cpu", "mammo_utils::scan_on_cpu_backward"
INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? W, Tensor? D, Tensor? bias, bool use_softplus"
library.define(SCAN, f"({INPUTS}, Tensor path) -> (Tensor, Tensor, Tensor)")
library.define(BACKWARD, f"({INPUTS}, Tensor path, Tensor start, Tensor dy, Tensor? dlast) -> Tensor[]")
scan = torch.ops.mammo_utils.scan_on_cpu


@cache
def _make_pool(threads: int, process: int) -> ThreadPoolExecutor:
    # One pool per process, because threads do not survive a fork. numba's own parallel layer is not used: its OpenMP
    # refuses to run after a fork, and it takes far longer to compile.
    return ThreadPoolExecutor(threads, thread_name_prefix="selective-scan")


def _make_scratch(size: int) -> np.ndarray:
    memory = np.empty(size + kernels.WIDTH, np.float32)
    first = -memory.ctypes.data // 4 % kernels.WIDTH  # aligned, so that no vector crosses a cache line
    return memory[first : first + size]


def _run(kernel, tasks: int, work: int, states: int, *tensors: Tensor | bool) -> None:
    """Call kernel(*tensors, scratch, first, end) over all tasks, on as many threads as torch uses."""
    arrays = [x.detach().numpy() if isinstance(x, Tensor) else x for x in tensors]
    threads = max(1, min(torch.get_num_threads(), tasks, work // LEAST_WORK))
    first, *rest = pairwise(tasks * i // threads for i in range(threads + 1))
    scratch = [_make_scratch(kernels.STATES + states * kernels.OF_STATE) for _ in range(threads)]
    pool = _make_pool(threads - 1, os.getpid()) if rest else None
    waiting = [pool.submit(kernel, *arrays, s, *part) for s, part in zip(scratch[1:], rest, strict=True)]
    kernel(*arrays, scratch[0], *first)  # this thread takes the first share
    for future in waiting:
        future.result()


@library.impl(SCAN, "cpu")
def _scan(u, delta, A, B, C, W, D, bias, use_softplus, path):
    """Scan along the K paths `path` (K, L) of an image of L pixels; all else is float32 on the CPU, of any strides.

    Args:
        u: (batch, K or 1, L, D); with 1 the K scans share it and add up their outputs.
        delta: (batch, K, L, D).
        A: (K, N, D).
        B: (batch, K, L, N).
        C: Like B.
        W: Like A, a factor of each state in the output, or None.
        D: (K, D) or None.
        bias: (K, D) or None.
        use_softplus: Whether delta becomes its softplus, after the bias.
        path: (K, L) int64, each row a permutation of the pixels, unchecked.

    Returns:
        y in u's shape, the last states (batch, K, N, D), and the states that the backward starts from.
    """
    y, last, start = outputs = _make_outputs(u, delta, A)
    tasks = len(delta) * -(-delta.shape[3] // kernels.LANES)
    inputs = _make_inputs(u, delta, A, B, C, W, D, bias, use_softplus, path)
    y = y.expand(-1, delta.shape[1], -1, -1)
    _run(kernels.forward, tasks, delta.numel() * A.shape[1], A.shape[1], *inputs, y, start, last)
    return outputs


@library.register_fake(SCAN)
def _make_outputs(u, delta, A, *_):
    batch, K, length, channels = delta.shape
    chunks = (length + kernels.STEPS - 1) // kernels.STEPS
    last, start = delta.new_empty(batch, K, A.shape[1], channels), delta.new_empty(batch, K, chunks, *A.shape[1:])
    return torch.empty_like(u), last, start


@library.impl(BACKWARD, "cpu")
def _scan_backward(u, delta, A, B, C, W, D, bias, use_softplus, path, start, dy, dlast):
    """Return the gradients of the eight inputs of `scan`, zeros for those that are None."""
    batch, K, _, channels = delta.shape
    blocks, states = -(-channels // kernels.LANES), A.shape[1]
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    # each image and block of channels has its own part of the sums, so that threads never add to the same number
    dA, dW = (delta.new_empty(batch, *A.shape) for _ in range(2))
    dD, dbias = (delta.new_empty(batch, K, channels) for _ in range(2))
    dB, dC = (delta.new_empty(blocks, *B.shape) for _ in range(2))
    dlast = delta.new_zeros(dA.shape) if dlast is None else dlast.contiguous()
    inputs = _make_inputs(u, delta, A, B, C, W, D, bias, use_softplus, path)
    outputs = (du.expand(-1, K, -1, -1), ddelta, dA, dB, dC, dW, dD, dbias)
    work = 3 * delta.numel() * states
    _run(kernels.backward, batch * blocks, work, states, *inputs, start, dlast, dy.expand(-1, K, -1, -1), *outputs)
    return [du, ddelta, *(x.sum(0) for x in (dA, dB, dC, dW, dD, dbias))]


@library.register_fake(BACKWARD)
def _make_gradients(u, delta, A, B, C, *_):
    K, _, channels = A.shape
    like = [delta.new_empty(shape) for shape in (A.shape, B.shape, C.shape, A.shape, (K, channels), (K, channels))]
    return [torch.empty_like(u), torch.empty_like(delta), *like]


def _make_inputs(u, delta, A, B, C, W, D, bias, use_softplus, path) -> tuple:
    """Return the arguments that both kernels share."""
    K, channels = delta.shape[1], delta.shape[3]
    W = u.new_ones(1).expand(A.shape) if W is None else W
    has_D = D is not None
    D, bias = (u.new_zeros(K, channels) if x is None else x.contiguous() for x in (D, bias))
    return u.expand(-1, K, -1, -1), delta, A, B, C, W, D, bias, has_D, use_softplus, path.view(torch.uint64)


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.use_softplus, path = inputs
    ctx.save_for_backward(*tensors, path, output[2])  # autograd notices a path changed in place
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dlast, _):
    *tensors, path, start = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    gradients = torch.ops.mammo_utils.scan_on_cpu_backward(*tensors, ctx.use_softplus, path, start, dy, dlast)
    return *(None if x is None else g for x, g in zip(tensors, gradients, strict=True)), None, None


library.register_autograd(SCAN, _differentiate, setup_context=_keep)
library.register_autograd(BACKWARD, refuse_second_derivative)
for _name in (SCAN, BACKWARD):
    library.register_vmap(_name, refuse_vmap)
