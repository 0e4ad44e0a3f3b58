"""The numba kernels as a differentiable function of tensors, run on several threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from mammo_utils.models.kernels import numba_kernel as kernels

LEAST_WORK = 100_000  # state updates below which starting a thread costs more than it gains


@cache
def _make_pool(threads: int, process: int) -> ThreadPoolExecutor:
    # One pool per process, because threads do not survive a fork. numba's own parallel layer is not used: its OpenMP
    # refuses to run after a fork, and it takes far longer to compile.
    return ThreadPoolExecutor(threads, thread_name_prefix="selective-scan")


def _run(kernel, tasks: int, work: int, *arrays) -> None:
    """Call kernel(*arrays, first, end) over all tasks, on as many threads as torch uses."""
    threads = max(1, min(torch.get_num_threads(), tasks, work // LEAST_WORK))
    edges = [tasks * i // threads for i in range(threads + 1)]
    if threads == 1:
        kernel(*arrays, 0, tasks)
        return
    pool = _make_pool(threads - 1, os.getpid())
    waiting = [pool.submit(kernel, *arrays, a, b) for a, b in pairwise(edges[1:])]
    kernel(*arrays, 0, edges[1])  # this thread takes the first share
    for future in waiting:
        future.result()


def _numpy(tensor: torch.Tensor | None, shape: tuple[int, ...] = ()) -> np.ndarray:
    return np.zeros(shape, np.float32) if tensor is None else tensor.detach().numpy()


class Scan(torch.autograd.Function):
    """K scans over the paths `path` (K, L) of an image of L pixels; all tensors are float32 on the CPU, of any strides.

    Shapes: u (batch, K or 1, L, D), where with 1 the K scans share it and add up their outputs, y in u's shape;
    delta (batch, K, L, D), A and W (K, N, D), B and C (batch, K, L, N), D and bias (K, D); W, D and bias may be None.
    Returns y and the last states (batch, K, N, D).
    """

    @staticmethod
    def forward(ctx, u, delta, A, B, C, W, D, bias, use_softplus, path):
        """Return y and the last states; keep the state at the start of each chunk for the backward."""
        batch, K, length, channels = delta.shape
        states, chunks = A.shape[1], -(-length // kernels.STEPS)
        y = torch.zeros_like(u)
        start = delta.new_empty(batch, K, chunks, states, channels)
        last = delta.new_empty(batch, K, states, channels)
        ctx.save_for_backward(u, delta, A, B, C, W, D, bias, start, path)  # autograd notices a path changed in place
        ctx.use_softplus = use_softplus
        inputs = _make_inputs(u, delta, A, B, C, W, D, bias, use_softplus, path)
        tasks = batch * -(-channels // kernels.LANES)
        outputs = (y.expand(-1, K, -1, -1), start, last)
        _run(kernels.forward, tasks, delta.numel() * states, *inputs, *map(_numpy, outputs))
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        """Return the gradients of all tensors but the path."""
        *tensors, start, path = ctx.saved_tensors
        u, delta, A, B, C, W, D, bias = tensors
        batch, K, _, channels = delta.shape
        blocks = -(-channels // kernels.LANES)
        du, ddelta = torch.zeros_like(u), torch.zeros_like(delta)
        # each image and block of channels has its own part of the sums, so that threads never add to the same number
        dA, dD, dbias = (delta.new_zeros(batch, *shape) for shape in (A.shape, (K, channels), (K, channels)))
        dW = delta.new_zeros(batch, *(A.shape if W is not None else (0, 0, 0)))
        dB, dC = delta.new_empty(blocks, *B.shape), delta.new_empty(blocks, *C.shape)
        inputs = _make_inputs(*tensors, ctx.use_softplus, path)
        given = (start, dlast, dy.expand(-1, K, -1, -1))
        outputs = (du.expand(-1, K, -1, -1), ddelta, dA, dB, dC, dW, dD, dbias)
        work = 3 * delta.numel() * A.shape[1]
        _run(kernels.backward, batch * blocks, work, *inputs, *map(_numpy, given), *map(_numpy, outputs))
        sums = [None if x is None else g.sum(0) for x, g in ((W, dW), (D, dD), (bias, dbias))]
        return du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), *sums, None, None


def _make_inputs(u, delta, A, B, C, W, D, bias, use_softplus, path) -> tuple:
    """Return the arguments that both kernels share."""
    K, channels = delta.shape[1], delta.shape[3]
    tensors = map(_numpy, (u.expand(-1, K, -1, -1), delta, A, B, C))
    options = (_numpy(W, (0, 0, 0)), _numpy(D, (K, channels)), _numpy(bias, (K, channels)))
    return *tensors, *options, D is not None, use_softplus, path.numpy().view(np.uint64)
