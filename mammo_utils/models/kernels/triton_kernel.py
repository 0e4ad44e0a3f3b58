"""The four scans of an image on a GPU, in Triton: read in place, in both directions, and added up.

The usual way makes four reordered copies of the image and scans them as four times the channels. Here a path is an
index of pixels: a tile of T steps by E channels is read through the index where it lies, a path and its reverse run
on the same tile, and their outputs are added up before they are written.

The steps are cut into tiles, so that a long scan fills a GPU, and run in three passes (Blelloch 1990, one level):

1. each tile alone, from a state of 0: the state after its last step, and the sum of its deltas;
2. from tile to tile: the state before each tile, through exp(A * sum of deltas) of the tile before it;
3. each tile again from its true initial state: the outputs.

The backward is the same with time reversed; it recomputes the states. There are no divisions and no atomic additions:
the same inputs give the same bits. Arithmetic is float32 for all inputs.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

STEPS, LANES, WARPS = 32, 32, 4  # steps and channels of a tile, and the warps that share it: few registers spill
LOG2E = math.log2(math.e)


@triton.jit
def _combine(a, x, b, y):
    return a * b, x * b + y


@triton.jit
def _scan(decay, x, REVERSE: tl.constexpr):
    """Run h_t = decay_t h_(t-1) + x_t down the first axis, or up it if REVERSE."""
    _, h = tl.associative_scan((decay, x), 0, _combine, reverse=REVERSE)
    return h


@triton.jit
def _load(pointer, pixels, channels, stride, mask):
    return tl.load(pointer + pixels[:, None] * stride + channels[None, :], mask=mask, other=0.0).to(tl.float32)


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
def _load_steps(delta, bias, pixels, channels, stride, mask):
    """Return a tile's delta after bias and softplus (0 outside, where a step changes nothing) and softplus's slope."""
    raw = _load(delta, pixels, channels, stride, mask) + tl.load(bias + channels, mask=mask, other=0.0)
    value, slope = _softplus(raw)
    return tl.where(mask, value, 0.0), slope


@triton.jit
def _decay(step, a, mask):
    """Return exp(step A) of a tile; 1 outside, where 0 times an infinite A would be NaN."""
    return tl.where(mask, tl.exp2(step * a), 1.0)


@triton.jit
def _locate(path, p, L, E, S, T: tl.constexpr, LANES: tl.constexpr):
    """Return this program's image, tile, steps, pixels and channels, and which of them exist."""
    image, tile = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    t = tile * T + tl.arange(0, T)
    e = tl.program_id(1) * LANES + tl.arange(0, LANES)
    pixels = tl.load(path + p * L + t, mask=t < L, other=0)
    return image, tile, t, pixels, e, (t < L)[:, None] & (e < E)[None, :]


@triton.jit
def _scan_tiles(
    v, delta, A, B, bias, path, state, total, L, E, S, P,
    v_b, v_l, d_b, d_k, d_l, b_b, b_k, b_l, b_n,
    UP: tl.constexpr, REVERSE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 1: scan a tile from a state of 0 along path p, or its reverse; store the state that the tile ends with.

    UP is the direction of the scan within the tile. In the forward it equals REVERSE, and v is u. In the backward it is
    the opposite, v is dy and B is C, and the scan gives the gradient that the tile hands to the state before it:
    decay_t g_t = decay_t (decay_(t+1) g_(t+1) + C_t dy_t).
    """
    p = tl.program_id(2).to(tl.int64)  # offsets of a path may exceed 32 bits
    image, tile, t, pixels, e, mask = _locate(path, p, L, E, S, T, LANES)
    k = p + P if REVERSE else p
    last = tl.arange(0, T)[:, None] == (0 if UP else T - 1)
    step, _ = _load_steps(delta + image * d_b + k * d_k, bias + k * E, pixels, e, d_l, mask)
    x = _load(v + image * v_b, pixels, e, v_l, mask)
    place = (image * S + tile) * 2 * P + k
    if UP == REVERSE:
        x *= step
        tl.store(total + place * E + e, tl.sum(step, 0), mask=e < E)
    for n in range(N):
        decay = _decay(step, tl.load(A + (k * N + n) * E + e, mask=e < E, other=0.0), mask)
        b = tl.load(B + image * b_b + k * b_k + pixels * b_l + n * b_n, mask=t < L, other=0.0).to(tl.float32)
        h = _scan(decay, x * b[:, None] if UP == REVERSE else decay * (x * b[:, None]), UP)
        tl.store(state + (place * N + n) * E + e, tl.sum(tl.where(last, h, 0.0), 0), mask=e < E)


@triton.jit
def _carry_states(
    state, total, A, E, P,
    UP: tl.constexpr, REVERSE: tl.constexpr, S: tl.constexpr, N: tl.constexpr,
    STATES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 2: replace the state that each tile ends with by the one that it begins with, from the last tile if UP."""
    image, p = (tl.program_id(0) // P).to(tl.int64), tl.program_id(0) % P
    k = p + P if REVERSE else p
    e, n = tl.program_id(1) * LANES + tl.arange(0, LANES), tl.arange(0, STATES)
    mask = (n < N)[:, None] & (e < E)[None, :]
    a = tl.load(A + (k * N + n)[:, None] * E + e[None, :], mask=mask, other=0.0)
    carry = tl.zeros((STATES, LANES), tl.float32)
    for i in range(S):
        place = (image * S + (S - 1 - i if UP else i)) * 2 * P + k
        at = state + (place * N + n)[:, None] * E + e[None, :]
        ends = tl.load(at, mask=mask, other=0.0)
        tl.store(at, carry, mask=mask)
        decay = tl.exp2(tl.load(total + place * E + e, mask=e < E, other=0.0)[None, :] * a)
        carry = decay * carry + ends


@triton.jit(do_not_specialize=["p"])
def _write_outputs(
    u, delta, A, B, C, D, bias, path, state, y, p, L, E, S, P,
    u_b, u_l, d_b, d_k, d_l, b_b, b_k, b_l, b_n, c_b, c_k, c_l, c_n,
    ADD: tl.constexpr, N: tl.constexpr, T: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 3: y of path p and of its reverse, added up, and added to y if ADD."""
    p = p.to(tl.int64)
    image, tile, t, pixels, e, mask = _locate(path, p, L, E, S, T, LANES)
    rows = tl.arange(0, T)[:, None]
    x_u = _load(u + image * u_b, pixels, e, u_l, mask)
    at = y + (image * L + pixels)[:, None] * E + e[None, :]
    out = tl.load(at, mask=mask, other=0.0) if ADD else tl.zeros((T, LANES), tl.float32)
    for REVERSE in tl.static_range(2):
        k = p + REVERSE * P
        first = rows == (T - 1 if REVERSE else 0)
        step, _ = _load_steps(delta + image * d_b + k * d_k, bias + k * E, pixels, e, d_l, mask)
        x = step * x_u
        out += tl.load(D + k * E + e, mask=e < E, other=0.0)[None, :] * x_u
        place = (image * S + tile) * 2 * P + k
        for n in range(N):
            decay = _decay(step, tl.load(A + (k * N + n) * E + e, mask=e < E, other=0.0), mask)
            b = tl.load(B + image * b_b + k * b_k + pixels * b_l + n * b_n, mask=t < L, other=0.0).to(tl.float32)
            c = tl.load(C + image * c_b + k * c_k + pixels * c_l + n * c_n, mask=t < L, other=0.0).to(tl.float32)
            start = tl.load(state + (place * N + n) * E + e, mask=e < E, other=0.0)[None, :]
            h = _scan(decay, x * b[:, None] + tl.where(first, decay * start, 0.0), REVERSE)
            out += h * c[:, None]
    tl.store(at, out, mask=mask)


@triton.jit(do_not_specialize=["p"])
def _write_gradients(
    u, delta, A, B, C, D, bias, path, state, grad, dy, du, ddelta, dA, dB, dC, dbias, p, images, L, E, S, P,
    u_b, u_l, y_b, y_l, d_b, d_k, d_l, b_b, b_k, b_l, b_n, c_b, c_k, c_l, c_n,
    ADD: tl.constexpr, N: tl.constexpr, T: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 3 of the backward, for path p and its reverse.

    With g_t the gradient of h_t through all later steps and q_t = decay_t h_(t-1), both recomputed here, and each
    product summed over the states, channels or steps that its left side does not have:

        du = g B delta + D dy    ddelta = g (A q + B u)    dB = g delta u    dC = dy h    dA = g q delta
    """
    p = p.to(tl.int64)
    image, tile, t, pixels, e, mask = _locate(path, p, L, E, S, T, LANES)
    rows = tl.arange(0, T)
    x_u = _load(u + image * u_b, pixels, e, u_l, mask)
    d = _load(dy + image * y_b, pixels, e, y_l, mask)
    at = du + (image * L + pixels)[:, None] * E + e[None, :]
    d_u = tl.load(at, mask=mask, other=0.0) if ADD else tl.zeros((T, LANES), tl.float32)
    for REVERSE in tl.static_range(2):
        k = p + REVERSE * P
        first = (rows == (T - 1 if REVERSE else 0))[:, None]
        last = (rows == (0 if REVERSE else T - 1))[:, None]
        before, after = (t + 1, t - 1) if REVERSE else (t - 1, t + 1)
        has_before = (before >= tile * T) & (before < tile * T + T) & (before < L)
        has_after = (after >= tile * T) & (after < tile * T + T) & (after < L)
        earlier = tl.load(path + p * L + before, mask=has_before, other=0)
        later = tl.load(path + p * L + after, mask=has_after, other=0)
        delta_k, bias_k = delta + image * d_b + k * d_k, bias + k * E
        step, slope = _load_steps(delta_k, bias_k, pixels, e, d_l, mask)
        mask_before, mask_after = has_before[:, None] & (e < E)[None, :], has_after[:, None] & (e < E)[None, :]
        x_before, _ = _load_steps(delta_k, bias_k, earlier, e, d_l, mask_before)
        x_before *= _load(u + image * u_b, earlier, e, u_l, mask_before)
        step_after, _ = _load_steps(delta_k, bias_k, later, e, d_l, mask_after)
        x = step * x_u
        d_step = tl.zeros((T, LANES), tl.float32)
        d_u += tl.load(D + k * E + e, mask=e < E, other=0.0)[None, :] * d
        place = (image * S + tile) * 2 * P + k
        for n in range(N):
            a = tl.load(A + (k * N + n) * E + e, mask=e < E, other=0.0)
            B_n, C_n = B + image * b_b + k * b_k + n * b_n, C + image * c_b + k * c_k + n * c_n
            b = tl.load(B_n + pixels * b_l, mask=t < L, other=0.0).to(tl.float32)[:, None]
            b_before = tl.load(B_n + earlier * b_l, mask=has_before, other=0.0).to(tl.float32)[:, None]
            c = tl.load(C_n + pixels * c_l, mask=t < L, other=0.0).to(tl.float32)[:, None]
            start = tl.load(state + (place * N + n) * E + e, mask=e < E, other=0.0)[None, :]
            end = tl.load(grad + (place * N + n) * E + e, mask=e < E, other=0.0)[None, :]
            decay = _decay(step, a, mask)
            # q scans decay_t h_(t-1) itself, so that h = q + x b at each row; g needs the decay of the step after
            q = _scan(decay, decay * tl.where(first, start, x_before * b_before), REVERSE)
            g = _scan(_decay(step_after, a, mask_after), d * c + tl.where(last, end, 0.0), not REVERSE)
            d_u += g * b * step
            d_step += g * (a * 0.6931471805599453 * q + b * x_u)
            tl.store(dA + (place * N + n) * E + e, tl.sum(tl.where(mask, g * q * step, 0.0), 0), mask=e < E)
            line = ((tl.program_id(1) * images + image) * 2 * P + k) * L + pixels
            tl.store(dB + line * N + n, tl.sum(g * x, 1), mask=t < L)
            tl.store(dC + line * N + n, tl.sum(d * (q + x * b), 1), mask=t < L)
        row = ((image * 2 * P + k) * L + pixels)[:, None] * E + e[None, :]
        d_step = tl.where(mask, d_step * slope, 0.0)
        tl.store(ddelta + row, d_step, mask=mask)
        tl.store(dbias + place * E + e, tl.sum(d_step, 0), mask=e < E)  # before ddelta is rounded
    tl.store(at, d_u, mask=mask)


class Scan2D(torch.autograd.Function):
    """Scans along P paths (P, L) and their P reverses over one image, with softplus; the outputs are added up.

    Shapes: u (batch, L, E), delta (batch, 2P, L, E), A (2P, N, E), B and C (batch, 2P, L, N), D and bias (2P, E);
    A, D and bias are float32. Returns (batch, L, E) in float32.
    """

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, path):
        """Return y; keep the states before the tiles for the backward."""
        u, delta = (x if x.stride(-1) == 1 else x.contiguous() for x in (u, delta))
        path = path.to(torch.int32)
        scaled = (A * LOG2E).contiguous()  # exp(x) is computed as exp2(x log2 e)
        batch, length, channels = u.shape
        K, states, _ = A.shape
        P, tiles = K // 2, triton.cdiv(length, STEPS)
        grid = (batch * tiles, triton.cdiv(channels, LANES))
        state = u.new_empty(batch, tiles, K, states, channels, dtype=torch.float32)
        total = u.new_empty(batch, tiles, K, channels, dtype=torch.float32)
        sizes = (length, channels, tiles, P)
        options = {"N": states, "T": STEPS, "LANES": LANES, "num_warps": WARPS}
        strides = (*u.stride()[:2], *delta.stride()[:3])
        _find_states((u, delta, scaled, B, bias, path, state, total), (*sizes, *strides, *B.stride()), options)
        y = u.new_empty(batch, length, channels, dtype=torch.float32)
        for p in range(P):
            _write_outputs[grid](
                u, delta, scaled, B, C, D, bias, path, state, y, p, *sizes, *strides, *B.stride(), *C.stride(),
                ADD=p > 0, **options,
            )  # fmt: skip
        ctx.save_for_backward(u, delta, scaled, B, C, D, bias, path, state, total)
        ctx.launch = grid, sizes, options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        """Return the gradients of all tensors but the path."""
        u, delta, scaled, B, C, D, bias, path, state, total = ctx.saved_tensors
        dy = dy.contiguous()
        batch, length, _ = u.shape
        K, states, _ = scaled.shape
        grid, sizes, options = ctx.launch
        strides = delta.stride()[:3]
        grad = torch.empty_like(state)
        numbers = (*sizes, *dy.stride()[:2], *strides, *C.stride())
        _find_states((dy, delta, scaled, C, bias, path, grad, total), numbers, options, gradient=True)
        du = torch.empty_like(dy, dtype=torch.float32)
        ddelta = delta.new_empty(delta.shape)
        dA, dbias = torch.empty_like(state), torch.empty_like(total)
        dB, dC = (u.new_empty(grid[1], batch, K, length, states, dtype=torch.float32) for _ in range(2))
        for p in range(K // 2):
            _write_gradients[grid](
                u, delta, scaled, B, C, D, bias, path, state, grad, dy, du, ddelta, dA, dB, dC, dbias, p, batch,
                *sizes, *u.stride()[:2], *dy.stride()[:2], *strides, *B.stride(), *C.stride(), ADD=p > 0, **options,
            )  # fmt: skip
        dD = (dy * u).sum((0, 1)).expand(K, -1)
        dA, dbias = dA.sum((0, 1)), dbias.sum((0, 1))
        return du.to(u.dtype), ddelta, dA, dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD, dbias, None


def _find_states(tensors: tuple[Tensor, ...], numbers: tuple[int, ...], options: dict, gradient: bool = False) -> None:
    """Run passes 1 and 2: fill `state` with the states before the tiles, or with the gradients after them."""
    _, _, A, _, _, path, state, total = tensors
    batch, tiles, _, states, channels = state.shape
    P, blocks, padded = len(path), triton.cdiv(channels, LANES), triton.next_power_of_2(states)
    sizes = {"S": tiles, "N": states, "STATES": padded, "LANES": LANES}
    for reverse in (False, True):
        up = reverse != gradient
        _scan_tiles[batch * tiles, blocks, P](*tensors, *numbers, UP=up, REVERSE=reverse, **options)
        _carry_states[batch * P, blocks](state, total, A, channels, P, UP=up, REVERSE=reverse, **sizes)
