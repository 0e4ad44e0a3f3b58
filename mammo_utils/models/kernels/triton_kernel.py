"""The four scans of an image on a GPU, in Triton: read in place, in both directions, and added up.

A path is an index of pixels, so that the image is never copied in another order. A program is one warp: it takes 32
neighbouring channels, one a thread, and walks the steps of a chunk one after another with the N states of its channel
in registers. Rows of neighbouring channels are read whole; sums over states stay within a thread; nothing goes through
shared memory and nothing waits at a barrier.

Chunks of 64 steps fill the GPU, in three passes (Blelloch 1990, one level):

1. each chunk alone, from a state of 0: the state after its last step, and the sum of its deltas;
2. from chunk to chunk: the state before each, through exp(A * sum of deltas) of the chunk before it;
3. each chunk again from its true initial state: the outputs.

The backward is the same with time reversed. Its third pass first walks the chunk forward and stores the state before
every fourth step; then it takes the groups of four steps from the last to the first and recomputes their states in
registers. Arithmetic is float32 for all inputs. The same inputs give the same bits: programs never add to the same
number, and partial sums of A, B, C, D and bias are added in a fixed order.

The cost of a step of one path, for N = 16 and bfloat16: bytes and exponentials for each channel, instructions for a
warp, that is 32 channels.

                    bytes read   bytes written   exponentials   instructions   registers   warps
    forward, 1           7              1             16             116            64        32
    forward, 3          13              4             16             143            79        25
    backward, 1          9              1             16             112            72        28
    backward, 3         58             27             48             579           255         8

Pass 2 adds 1 byte each way; softplus takes one more exponential a pass, and in the last one two. Bytes are counted as
the loops request them: 16 each way of the backward's third pass are the states within the chunk, and 16 are A, which
each group reads again from the first-level cache. Its sums over 32 channels, for B and C, take 31 shuffles a step.
Instructions are those of the loops in the machine code for an H100. Registers, and the warps of the 32 possible that
they leave room for on a multiprocessor, are recorded in `benchmarks/gpu_resources.json`; nothing is spilled.
The kernel has not been run on a GPU yet.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from mammo_utils.models.kernels import refuse_second_derivative, refuse_vmap

LANES = 32  # channels of a program, one in each thread of a warp
STEPS = 64  # steps of a chunk, which a program walks one after another
GROUP = 4  # steps whose loads are issued together, and whose states the backward holds in registers
LOG2E = math.log2(math.e)
MOST = 2**31 - 1  # the largest offset in 32 bits

SCAN, BACKWARD = "mammo_utils::scan_by_triton", "mammo_utils::scan_by_triton_backward"
INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor bias, Tensor path"
library.define(SCAN, f"({INPUTS}) -> (Tensor, Tensor, Tensor)")
library.define(BACKWARD, f"({INPUTS}, Tensor state, Tensor total, Tensor dy) -> Tensor[]")
scan = torch.ops.mammo_utils.scan_by_triton


@triton.jit
def _softplus(x):
    """Return log(1 + e^x) and its derivative; with e = e^-|x|, log(1 + e) = 2 artanh(e / (2 + e)), a short series."""
    e = tl.exp(-tl.abs(x))
    s = e / (2 + e)
    v = s * s
    p = 0.12144778668880463
    p = p * v + 0.10715370625257492
    p = p * v + 0.14308297634124756
    p = p * v + 0.19999444484710693
    p = p * v + 0.3333333730697632
    value = 2 * (s + s * v * p) + tl.where(x > 0, x, 0.0)
    return value, tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit
def _load(row, mask):
    return tl.load(row, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _find_tile(place, N: tl.constexpr, LANES: tl.constexpr):
    """Return the offsets (N, LANES) of this program's channels at `place` of an array (places, blocks, N, LANES)."""
    block = place * tl.num_programs(1) + tl.program_id(1)
    at = block * (N * LANES) + tl.arange(0, N)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    return tl.multiple_of(at, (1, 1))  # else Triton gives 4 neighbours to a thread, and reorders them in the loops


@triton.jit
def _locate(L, E, S, T: tl.constexpr, LANES: tl.constexpr):
    """Return this program's image, chunk, first step, number of steps, channels, and which of these exist."""
    image, chunk = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    e = tl.program_id(1) * LANES + tl.arange(0, LANES)
    return image, chunk, chunk * T, tl.minimum(T, L - chunk * T), e, e < E


@triton.jit
def _find_start(first, length, against):
    """Return where a walk along a path, or against it, starts, and the sign of its steps."""
    return tl.where(against, first + length - 1, first), tl.where(against, -1, 1)


@triton.jit
def _add_halves(low, high, lanes, BIT: tl.constexpr):
    """Add each thread's values to those of the thread whose number differs by BIT: `low` there, or `high` here."""
    upper = ((lanes & BIT) != 0)[None, :]
    other = tl.broadcast_to((lanes ^ BIT)[None, :], low.shape)
    return tl.where(upper, high, low) + tl.gather(tl.where(upper, low, high), other, 1)


@triton.jit
def _sum_lanes(low, high, LANES: tl.constexpr):
    """Sum each row of (N, LANES) `low` and `high` over the lanes; lane i gets rows i * R to i * R + R, R = 2N / LANES.

    Each exchange halves the rows that a thread holds: 31 shuffles for 32 rows, where 32 separate sums take 160.
    """
    lanes = tl.arange(0, LANES)
    x = _add_halves(low, high, lanes, LANES // 2)
    for i in tl.static_range(2, 6):
        if LANES >> i > 0:
            low, high = tl.split(tl.permute(tl.reshape(x, (2, x.shape[0] // 2, LANES)), (1, 2, 0)))
            x = _add_halves(low, high, lanes, LANES >> i)
    return x


@triton.jit
def _scan_chunks(
    v, delta, A, rates, bias, path, state, total, L, E, S, P, v_b, v_l, d_b, d_k, d_l,
    GRADIENT: tl.constexpr, N: tl.constexpr, T: tl.constexpr, G: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 1: scan a chunk from a state of 0; store the state that it ends with and the sum of its deltas.

    If GRADIENT, v is dy, the chunk is walked against its path, and the scan gives the gradient that the chunk hands to
    the state before it: decay_t g_t = decay_t (decay_(t+1) g_(t+1) + C_t dy_t).
    """
    image, chunk, first, length, e, mask = _locate(L, E, S, T, LANES)
    k = tl.program_id(2).to(tl.int64)
    start, sign = _find_start(first, length, (k >= P) != GRADIENT)
    path, delta, v = path + k % P * L, delta + image * d_b + k * d_k + e, v + image * v_b + e
    rates += (image * 2 * P + k) * L * 2 * N + (N if GRADIENT else 0) + tl.arange(0, N)
    a = tl.load(A + _find_tile(k, N, LANES))
    bias_k, h, elapsed = _load(bias + k * E + e, mask), tl.zeros_like(a), tl.zeros((LANES,), tl.float32)
    for i in tl.range(0, length, loop_unroll_factor=G):
        pixel = tl.load(path + start + sign * i)
        step, _ = _softplus(_load(delta + pixel * d_l, mask) + bias_k)
        x, rate = _load(v + pixel * v_l, mask), tl.load(rates + pixel * 2 * N)
        decay = tl.exp2(step[None, :] * a)
        if GRADIENT:
            h = decay * (h + x[None, :] * rate[:, None])
        else:
            h = decay * h + (step * x)[None, :] * rate[:, None]
            elapsed += step
    place = (image * S + chunk) * 2 * P + k
    tl.store(state + _find_tile(place, N, LANES), h)
    if not GRADIENT:
        tl.store(total + place * E + e, elapsed, mask=mask)


@triton.jit
def _carry_states(
    state, total, A, E, S, P,
    GRADIENT: tl.constexpr, N: tl.constexpr, G: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 2: replace the state that each chunk ends with by the one that it begins with."""
    image, k = tl.program_id(0).to(tl.int64), tl.program_id(2)
    e = tl.program_id(1) * LANES + tl.arange(0, LANES)
    mask = e < E
    start, sign = _find_start(0, S, (k >= P) != GRADIENT)
    a = tl.load(A + _find_tile(k, N, LANES))
    carry = tl.zeros_like(a)
    for i in range(0, S, G):
        ends = ()
        for j in tl.static_range(G):  # all loads before the stores, else each would wait
            place, inside = (image * S + start + sign * (i + j)) * 2 * P + k, i + j < S
            end = tl.load(state + _find_tile(place, N, LANES), mask=inside, other=0.0)
            ends += ((place, inside, end, tl.load(total + place * E + e, mask=mask & inside, other=0.0)),)
        for j in tl.static_range(G):
            place, inside, end, elapsed = ends[j]
            tl.store(state + _find_tile(place, N, LANES), carry, mask=inside)
            carry = tl.exp2(elapsed[None, :] * a) * carry + end


@triton.jit(do_not_specialize=["p"])
def _write_outputs(
    u, delta, A, rates, D, bias, path, state, y, p, L, E, S, P, u_b, u_l, d_b, d_k, d_l,
    N: tl.constexpr, T: tl.constexpr, G: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 3: y of path p and of its reverse, elapsed up, and elapsed to y of the paths before p."""
    image, chunk, first, length, e, mask = _locate(L, E, S, T, LANES)
    n = tl.arange(0, N)
    path, u, y = path + p.to(tl.int64) * L, u + image * u_b + e, y + image * L * E + e
    for reverse in range(2):
        k = (p + reverse * P).to(tl.int64)  # the offset of a path may exceed 32 bits
        start, sign = _find_start(first, length, reverse == 1)
        place = (image * S + chunk) * 2 * P + k
        delta_k, rates_k = delta + image * d_b + k * d_k + e, rates + (image * 2 * P + k) * L * 2 * N + n
        a, h = tl.load(A + _find_tile(k, N, LANES)), tl.load(state + _find_tile(place, N, LANES))
        D_k, bias_k, has_sum = _load(D + k * E + e, mask), _load(bias + k * E + e, mask), mask & (k > 0)
        for i in range(0, length, G):
            outputs = ()
            for j in tl.static_range(G):  # no store among the loads, else each would wait
                pixel = tl.load(path + start + sign * (i + j))
                step, _ = _softplus(_load(delta_k + pixel * d_l, mask) + bias_k)
                x, before = _load(u + pixel * u_l, mask), _load(y + pixel * E, has_sum)
                b, c = tl.load(rates_k + pixel * 2 * N), tl.load(rates_k + N + pixel * 2 * N)
                h = tl.exp2(step[None, :] * a) * h + (step * x)[None, :] * b[:, None]
                outputs += ((pixel, before + D_k * x + tl.sum(h * c[:, None], 0)),)
            for j in tl.static_range(G):
                pixel, output = outputs[j]
                tl.store(y + pixel * E, output, mask=mask)


@triton.jit(do_not_specialize=["p"])
def _write_gradients(
    u, delta, A, rates, D, bias, path, state, grad, dy, inner, du, ddelta, dA, drates, dD, dbias, p, L, E, S, P,
    u_b, u_l, d_b, d_k, d_l, dd_b, dd_k, dd_l,
    N: tl.constexpr, T: tl.constexpr, G: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 3 of the backward, for path p and its reverse.

    With g_t the gradient of h_t through all later steps and q_t = decay_t h_(t-1), both recomputed here, and each
    product summed over the states, channels or steps that its left side does not have:

        du = g B delta + D dy    ddelta = g (A q + B u)    dB = g delta u    dC = dy h    dA = g q delta

    The chunk is walked along the path once, to store the state before each group of G steps in `inner`, and then
    against it, group by group.
    """
    image, chunk, first, length, e, mask = _locate(L, E, S, T, LANES)
    n, lanes = tl.arange(0, N), tl.arange(0, LANES)
    ROWS: tl.constexpr = 2 * N // LANES
    rows = tl.arange(0, ROWS)[:, None] + ROWS * lanes[None, :]  # of B and C, as `_sum_lanes` leaves them
    path, u, dy, du = path + p.to(tl.int64) * L, u + image * u_b + e, dy + image * L * E + e, du + image * L * E + e
    block = tl.program_id(1).to(tl.int64)
    images, places = tl.num_programs(0) // S, tl.program_id(0).to(tl.int64) * (T // G)
    for reverse in range(2):
        k = (p + reverse * P).to(tl.int64)  # the offset of a path may exceed 32 bits
        start, sign = _find_start(first, length, reverse == 1)
        place = (image * S + chunk) * 2 * P + k
        delta_k, ddelta_k = delta + image * d_b + k * d_k + e, ddelta + image * dd_b + k * dd_k + e
        rates_k = rates + (image * 2 * P + k) * L * 2 * N + n
        drates_k = drates + ((block * images + image) * 2 * P + k) * L * 2 * N + rows
        a, h = tl.load(A + _find_tile(k, N, LANES)), tl.load(state + _find_tile(place, N, LANES))
        D_k, bias_k, has_sum = _load(D + k * E + e, mask), _load(bias + k * E + e, mask), mask & (k > 0)
        for i in range(0, length, G):
            tl.store(inner + _find_tile(places + i // G, N, LANES), h)
            for j in tl.static_range(G):
                pixel = tl.load(path + start + sign * (i + j))
                step, _ = _softplus(_load(delta_k + pixel * d_l, mask) + bias_k)
                x, b = _load(u + pixel * u_l, mask), tl.load(rates_k + pixel * 2 * N)
                h = tl.exp2(step[None, :] * a) * h + (step * x)[None, :] * b[:, None]
        g, d_a = tl.load(grad + _find_tile(place, N, LANES)), tl.zeros_like(a)
        d_bias, d_D = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
        for i in range(length - G, -1, -G):
            h = tl.load(inner + _find_tile(places + i // G, N, LANES))
            kept = ()
            for j in tl.static_range(G):
                pixel = tl.load(path + start + sign * (i + j))
                step, slope = _softplus(_load(delta_k + pixel * d_l, mask) + bias_k)
                x, b = _load(u + pixel * u_l, mask), tl.load(rates_k + pixel * 2 * N)
                q = tl.exp2(step[None, :] * a) * h
                h = q + (step * x)[None, :] * b[:, None]
                kept += ((pixel, step, slope, x, q),)
            # A is loaded again lest the compiler keep all decays of the group, which do not fit the registers.
            a = tl.load(A + _find_tile(k, N, LANES))
            for j in tl.static_range(G - 1, -1, -1):
                pixel, step, slope, x, q = kept[j]
                b, c = tl.load(rates_k + pixel * 2 * N), tl.load(rates_k + N + pixel * 2 * N)
                d, before = _load(dy + pixel * E, mask), _load(du + pixel * E, has_sum)
                g += d[None, :] * c[:, None]
                g_q, g_b = g * q, tl.sum(g * b[:, None], 0)
                d_a += g_q * step[None, :]
                d_step = (0.6931471805599453 * tl.sum(g_q * a, 0) + g_b * x) * slope
                d_bias += d_step
                d_D += d * x
                h = q + (step * x)[None, :] * b[:, None]
                sums = _sum_lanes(g * (step * x)[None, :], h * d[None, :], LANES)
                g *= tl.exp2(step[None, :] * a)
                tl.store(du + pixel * E, before + D_k * d + g_b * step, mask=mask)
                tl.store(ddelta_k + pixel * dd_l, d_step, mask=mask)
                tl.store(drates_k + pixel * 2 * N, sums)
        tl.store(dA + _find_tile(place, N, LANES), d_a)
        tl.store(dbias + place * E + e, d_bias, mask=mask)
        tl.store(dD + place * E + e, d_D, mask=mask)


@library.impl(SCAN, "default")
def _scan(u, delta, A, B, C, D, bias, path):
    """Scan along P paths `path` (P, L) and their P reverses over an image, with softplus; add up the outputs.

    Args:
        u: (batch, L, E).
        delta: (batch, 2P, L, E).
        A: (2P, N, E) in float32, as D and bias.
        B: (batch, 2P, L, N).
        C: Like B.
        D: (2P, E).
        bias: (2P, E).
        path: (P, L) int64, each row a permutation of the pixels, unchecked.

    Returns:
        y (batch, L, E) in float32; and for the backward the state before each chunk, and the sum of its deltas.
    """
    y, state, total = outputs = _make_outputs(u, delta, A)
    inputs, numbers, constants = _prepare(u, delta, A, B, C, D, bias, path, state)
    _find_states(inputs[0], inputs, state, total, numbers, constants)
    with torch.cuda.device_of(u):
        for p in range(len(path)):
            _write_outputs[_grid(state)](*inputs, state, y, p, *numbers, **constants)
    return outputs


@library.register_fake(SCAN)
def _make_outputs(u, delta, A, *_):
    batch, K, length, channels = delta.shape
    chunks, numbers = (length + STEPS - 1) // STEPS, {"dtype": torch.float32}
    state = u.new_empty(batch, chunks, K, -(-channels // LANES), _pad(A.shape[1]), LANES, **numbers)
    return u.new_empty(u.shape, **numbers), state, u.new_empty(batch, chunks, K, channels, **numbers)


@library.impl(BACKWARD, "default")
def _scan_backward(u, delta, A, B, C, D, bias, path, state, total, dy):
    """Return the gradients of the seven inputs of `scan`."""
    inputs, numbers, constants = _prepare(u, delta, A, B, C, D, bias, path, state)
    grid, rates, dy, grad = _grid(state), inputs[3], dy.contiguous(), torch.empty_like(state)
    _find_states(dy, inputs, grad, total, numbers, constants, gradient=True)
    du, ddelta, dA, dD, dbias = (torch.empty_like(x) for x in (dy, inputs[1], state, total, total))
    drates = rates.new_empty(grid[1], *rates.shape)  # each block of channels its own, summed in a fixed order
    inner = rates.new_empty(grid[0], STEPS // constants["G"], *state.shape[3:])
    outputs = (du, ddelta, dA, drates, dD, dbias)
    with torch.cuda.device_of(u):
        for p in range(len(path)):
            sizes = (*numbers, *ddelta.stride()[:3])
            _write_gradients[grid](*inputs, state, grad, dy, inner, *outputs, p, *sizes, **constants)
    dA, dD, dbias = (x.sum((0, 1)) for x in (dA, dD, dbias))
    dA = dA.transpose(1, 2).flatten(2)[:, : A.shape[1], : A.shape[2]]  # (K, blocks, N, LANES) -> (K, N, E)
    dB, dC = (x[..., : B.shape[3]].to(B.dtype, copy=True) for x in drates.sum(0).unbind(3))
    return [du.to(u.dtype), ddelta, dA.contiguous(), dB.contiguous(), dC.contiguous(), dD, dbias]


@library.register_fake(BACKWARD)
def _make_gradients(u, delta, A, B, C, D, bias, *_):
    others = (x.new_empty(x.shape) for x in (A, B, C, D, bias))
    return [u.new_empty(u.shape), torch.empty_like(_in_rows(delta)), *others]


def _prepare(u, delta, A, B, C, D, bias, path, state) -> tuple[tuple[Tensor, ...], tuple[int, ...], dict[str, int]]:
    """Return the tensors, the sizes and strides, and the constants that the kernels share."""
    (batch, length, channels), (K, states, _), (blocks, N, _) = u.shape, A.shape, state.shape[3:]
    u, delta = _in_rows(u), _in_rows(delta)
    scaled = A.new_full((K, N, blocks * LANES), -1.0)  # an infinite delta makes no NaN of the states that are padding
    scaled[:, :states, :channels] = A * LOG2E  # exp(x) is computed as exp2(x log2 e)
    scaled = scaled.unflatten(2, (blocks, LANES)).transpose(1, 2).contiguous()  # (K, blocks, N, LANES)
    rates = A.new_zeros(batch, K, length, 2, N)  # B and C of a pixel in one aligned row, which 8 loads of 16 bytes read
    rates[..., 0, :states], rates[..., 1, :states] = B, C
    # The kernels compute a pixel's offset in the index's own type.
    path = path.to(torch.int64 if length * max(u.stride(1), delta.stride(2), channels, 2 * N) > MOST else torch.int32)
    numbers = (length, channels, state.shape[1], len(path), *u.stride()[:2], *delta.stride()[:3])
    constants = {"N": N, "T": STEPS, "G": math.gcd(length, GROUP), "LANES": LANES, "num_warps": 1}
    return (u, delta, scaled, rates, D.contiguous(), bias.contiguous(), path.contiguous()), numbers, constants


def _find_states(v, inputs, state, total, numbers, constants, gradient=False) -> None:
    """Run passes 1 and 2: fill `state` with the states before the chunks, or with the gradients after them."""
    _, delta, A, rates, _, bias, path = inputs
    batch, _, K, *_ = state.shape
    numbers, constants = (*numbers[:4], *v.stride()[:2], *numbers[6:]), constants | {"GRADIENT": gradient}
    with torch.cuda.device_of(v):
        _scan_chunks[*_grid(state), K](v, delta, A, rates, bias, path, state, total, *numbers, **constants)
        del constants["T"]
        _carry_states[batch, _grid(state)[1], K](state, total, A, *numbers[1:4], **constants)


def _grid(state: Tensor) -> tuple[int, int]:
    batch, chunks, _, blocks, *_ = state.shape
    return batch * chunks, blocks


def _in_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _pad(states: int) -> int:
    """Return the rows of a tile: a power of two, and enough that B and C of a pixel fill the lanes."""
    return max(LANES // 2, triton.next_power_of_2(int(states)))


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple:
    return *torch.ops.mammo_utils.scan_by_triton_backward(*ctx.saved_tensors, dy), None


library.register_autograd(SCAN, _differentiate, setup_context=_keep)
library.register_autograd(BACKWARD, refuse_second_derivative)
for _name in (SCAN, BACKWARD):
    library.register_vmap(_name, refuse_vmap)
