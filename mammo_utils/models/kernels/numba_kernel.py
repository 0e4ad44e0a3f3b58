"""The selective scan on a CPU in numba: Eq. 6 forward, and its backward written by hand.

One thread takes one image and one block of `LANES` channels, so that a vector register holds neighbouring channels.
Time is cut into chunks of `STEPS`, whose states lie in a scratch array that fits the first-level cache. Only the state
at the start of each chunk is stored, N/STEPS times the size of the input; the backward recomputes the other states
from it. No array of size L x D x N ever exists.

Every array is indexed by pixel, and `path[k, t]` is the pixel that path k visits at step t: a reversed or transposed
scan is another path over the same memory, never a copy. The strides of all arrays are arbitrary, their shapes are:

    u, delta, y   (batch, K, L, D)      B, C   (batch, K, L, N)      A, W   (K, N, D)
    D, bias       (K, D)                start  (batch, K, chunks, N, D): the state before each chunk

K paths whose u and y are expanded over K (stride 0) share their input and add up their output. W scales state n of
channel d in the output and so carries a B or C that is constant in time. Results do not depend on the number of
threads: one thread sums all paths of a block, and the blocks are summed in a fixed order.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

LANES = 64  # channels of a block
STEPS = 16  # time steps of a chunk

# Sums may be reordered and products contracted, but NaN and infinity keep their meaning.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}
LOG2E = np.float32(1 / math.log(2))
LN2 = np.float32(math.log(2))
ZERO, ONE = np.float32(0), np.float32(1)

# Rows of the scratch array, each LANES wide. With one flat array and constant offsets the compiler sees that the rows
# do not overlap; with separate arrays it would not vectorise the inner loop of the backward.
DELTA, SLOPE, U, X, Y, DY = (i * STEPS for i in range(6))  # X is delta * u, SLOPE the derivative of softplus
DECAY, SUM_GB, SUM_GHA = (i * STEPS for i in range(6, 9))  # exp(delta A); sums over the states, see `backward`
STATE = 9 * STEPS  # STEPS + 1 rows: row 0 is the state before the chunk
GRAD = 10 * STEPS + 1  # STEPS + 1 rows: row t is the gradient of the state after step t - 1 through later steps
A2, WN, DK, DD, DBIAS = (11 * STEPS + 2 + i for i in range(5))  # A log2(e) and W of one state; D; gradients of D, bias
ROWS = 11 * STEPS + 7


def jit(*arguments, **options):
    """Compile by numba.njit, cached on disk if a folder is writable, because compiling takes minutes.

    The error model is not numba's default: there a division may raise, and a loop that may raise is not vectorised.
    """
    options |= {"fastmath": FASTMATH, "error_model": "numpy"}

    def decorate(function):
        try:
            return njit(*arguments, cache=True, **options)(function)
        except RuntimeError:  # "no locator available": neither the package nor the home folder is writable
            return njit(*arguments, **options)(function)

    return decorate


@jit()
def exp2(z):
    """Return 2^z with a relative error of 7e-8: 0 below 2^-126.5, infinity above 2^127.5, NaN for NaN.

    z = i + r with r in [-1/2, 1/2]: 2^r is a minimax polynomial (ours, fitted with p(0) = 1), 2^i is made from its
    bits. Adding 1.5 * 2^23 leaves i in the low bits of the float, even for a NaN, whose conversion to an integer would
    be undefined. A NaN fails both comparisons and so passes through.
    """
    z = np.float32(-127) if z < np.float32(-127) else z
    z = np.float32(128) if z > np.float32(128) else z
    i = np.int32(np.float32(z + np.float32(12582912.0)).view(np.int32) - np.int32(0x4B400000))
    r = z - np.float32(i)
    p = np.float32(0.00015353361959569156)
    p = p * r + np.float32(0.0013398875016719103)
    p = p * r + np.float32(0.00961843691766262)
    p = p * r + np.float32(0.055503323674201965)
    p = p * r + np.float32(0.24022647738456726)
    p = p * r + np.float32(0.6931471824645996)
    p = p * r + ONE
    return p * np.int32(np.int32(i + np.int32(127)) << np.int32(23)).view(np.float32)


@jit()
def softplus(x):
    """Return log(1 + e^x) and its derivative; with e = e^-|x|, log(1 + e) = 2 artanh(e / (2 + e)), a short series."""
    e = exp2(-abs(x) * LOG2E)
    s = e / (np.float32(2) + e)
    v = s * s
    p = np.float32(0.12144778668880463)
    p = p * v + np.float32(0.10715370625257492)
    p = p * v + np.float32(0.14308297634124756)
    p = p * v + np.float32(0.19999444484710693)
    p = p * v + np.float32(0.3333333730697632)
    log1p = np.float32(2) * (s + s * v * p)
    below = x < ZERO
    value = log1p if below else x + log1p
    slope = (e if below else ONE) / (ONE + e)
    return value, slope


@jit()
def load(s, row, source, path):
    """Copy source[path[t], c] into scratch rows; the inner loop runs along the shorter stride of the source."""
    lanes = source.shape[1]
    if abs(source.strides[1]) <= abs(source.strides[0]):
        for t in range(STEPS):
            if t == path.size:
                break
            pixel = path[t]
            for c in range(LANES):  # a constant bound, which is vectorised
                if c < lanes:
                    s[(row + t) * LANES + c] = source[pixel, c]
    else:
        for c in range(lanes):
            for t in range(STEPS):
                if t == path.size:
                    break
                s[(row + t) * LANES + c] = source[path[t], c]


@jit()
def add(s, row, target, path):
    """Add scratch rows to target[path[t], c]; the loops are ordered as in `load`."""
    lanes = target.shape[1]
    if abs(target.strides[1]) <= abs(target.strides[0]):
        for t in range(STEPS):
            if t == path.size:
                break
            pixel = path[t]
            for c in range(LANES):
                if c < lanes:
                    target[pixel, c] += s[(row + t) * LANES + c]
    else:
        for c in range(lanes):
            for t in range(STEPS):
                if t == path.size:
                    break
                target[path[t], c] += s[(row + t) * LANES + c]


@jit()
def load_inputs(s, u, delta, bias, use_softplus, path):
    """Fill the rows U, DELTA (after bias and softplus), SLOPE and X = delta * u of one chunk."""
    load(s, U, u, path)
    load(s, DELTA, delta, path)
    lanes = bias.size
    for t in range(STEPS):
        if t == path.size:
            break
        for c in range(LANES):
            if c < lanes:
                s[(DELTA + t) * LANES + c] += bias[c]
        if use_softplus:
            for c in range(LANES):
                value, slope = softplus(s[(DELTA + t) * LANES + c])
                s[(DELTA + t) * LANES + c], s[(SLOPE + t) * LANES + c] = value, slope
        else:
            for c in range(LANES):
                s[(SLOPE + t) * LANES + c] = ONE
        for c in range(LANES):
            s[(X + t) * LANES + c] = s[(DELTA + t) * LANES + c] * s[(U + t) * LANES + c]


F4 = types.float32
A2D, A3D, A4D, A5D = (types.Array(F4, n, "A") for n in (2, 3, 4, 5))
PATH = types.Array(types.uint64, 2, "A")
SHARED = (A4D, A4D, A3D, A4D, A4D, A3D, A2D, A2D, types.boolean, types.boolean, PATH)


@jit(types.void(*SHARED, A4D, A5D, A4D, types.int64, types.int64), nogil=True)
def forward(u, delta, A, B, C, W, D, bias, has_D, use_softplus, path, y, start, last, first, end):
    """Scan the tasks first..end, each a block of an image: add to y, write `start` and `last` (batch, K, N, D)."""
    channels, states = u.shape[3], A.shape[1]
    blocks = (channels + LANES - 1) // LANES
    has_W = W.size > 0
    s = np.zeros(ROWS * LANES, np.float32)
    h = np.zeros(states * LANES, np.float32)
    for task in range(first, end):
        b, d0 = task // blocks, (task % blocks) * LANES
        lanes = min(LANES, channels - d0)
        for k in range(path.shape[0]):
            uk, deltak, biask = u[b, k][:, d0 : d0 + lanes], delta[b, k][:, d0 : d0 + lanes], bias[k, d0 : d0 + lanes]
            yk = y[b, k][:, d0 : d0 + lanes]
            s[:] = ZERO  # lanes beyond the last channel stay 0
            h[:] = ZERO
            if has_D:
                for c in range(lanes):
                    s[DK * LANES + c] = D[k, d0 + c]
            for chunk in range(start.shape[2]):
                t0 = chunk * STEPS
                pixels = path[k, t0 : t0 + STEPS]
                steps = pixels.size
                load_inputs(s, uk, deltak, biask, use_softplus, pixels)
                for t in range(STEPS):
                    for c in range(LANES):
                        s[(Y + t) * LANES + c] = s[DK * LANES + c] * s[(U + t) * LANES + c] if has_D else ZERO
                for n in range(states):
                    for c in range(lanes):
                        s[A2 * LANES + c] = A[k, n, d0 + c] * LOG2E
                        s[WN * LANES + c] = W[k, n, d0 + c] if has_W else ONE
                        start[b, k, chunk, n, d0 + c] = h[n * LANES + c]
                    for c in range(LANES):
                        s[STATE * LANES + c] = h[n * LANES + c]
                    for t in range(STEPS):  # Eq. 6, one state of all lanes at a time
                        if t == steps:
                            break
                        pixel = pixels[t]
                        Bt, Ct = B[b, k, pixel, n], C[b, k, pixel, n]
                        for c in range(LANES):
                            decay = exp2(s[(DELTA + t) * LANES + c] * s[A2 * LANES + c])
                            state = decay * s[(STATE + t) * LANES + c] + s[(X + t) * LANES + c] * Bt
                            s[(STATE + t + 1) * LANES + c] = state
                            s[(Y + t) * LANES + c] += state * s[WN * LANES + c] * Ct
                    for c in range(LANES):
                        h[n * LANES + c] = s[(STATE + steps) * LANES + c]
                add(s, Y, yk, pixels)
            for n in range(states):
                for c in range(lanes):
                    last[b, k, n, d0 + c] = h[n * LANES + c]


@jit(types.void(*SHARED, A5D, A4D, A4D, A4D, A4D, A4D, A5D, A5D, A4D, A3D, A3D, types.int64, types.int64), nogil=True)
def backward(
    u, delta, A, B, C, W, D, bias, has_D, use_softplus, path, start, dlast, dy,
    du, ddelta, dA, dB, dC, dW, dD, dbias, first, end,
):  # fmt: skip
    """Run the backward of the tasks first..end: add to du, write the other gradients.

    Shapes: dy, du, ddelta (batch, K, L, D); dlast (batch, K, N, D). The caller sums dA, dW (batch, K, N, D) and dD,
    dbias (batch, K, D) over the batch, and dB, dC (blocks, batch, K, L, N) over the blocks.

    Let g_t be the gradient of the state h_t through y_t and all later steps. Then Eq. 6 gives
    g_t = W C_t dy_t + decay_{t+1} g_{t+1} with decay_t = exp(delta_t A), and

        d(delta u) = sum_n g B    d(delta A) = g decay h_{t-1}    dB = sum_d g delta u    dC = sum_d W h dy

    The rows SUM_GB and SUM_GHA add up g B and g decay h_{t-1} A over the states; at last they hold du and ddelta.
    """
    channels, states = u.shape[3], A.shape[1]
    blocks = (channels + LANES - 1) // LANES
    has_W = W.size > 0
    s = np.zeros(ROWS * LANES, np.float32)
    g = np.zeros(states * LANES, np.float32)
    for task in range(first, end):
        b, block = task // blocks, task % blocks
        d0 = block * LANES
        lanes = min(LANES, channels - d0)
        for k in range(path.shape[0]):
            uk, deltak, biask = u[b, k][:, d0 : d0 + lanes], delta[b, k][:, d0 : d0 + lanes], bias[k, d0 : d0 + lanes]
            dyk, duk = dy[b, k][:, d0 : d0 + lanes], du[b, k][:, d0 : d0 + lanes]
            ddeltak = ddelta[b, k][:, d0 : d0 + lanes]
            s[:] = ZERO
            g[:] = ZERO
            for c in range(lanes):
                for n in range(states):
                    g[n * LANES + c] = dlast[b, k, n, d0 + c]
                if has_D:
                    s[DK * LANES + c] = D[k, d0 + c]
            for chunk in range(start.shape[2] - 1, -1, -1):  # from the last chunk to the first
                t0 = chunk * STEPS
                pixels = path[k, t0 : t0 + STEPS]
                steps = pixels.size
                load_inputs(s, uk, deltak, biask, use_softplus, pixels)
                load(s, DY, dyk, pixels)
                s[SUM_GB * LANES : (SUM_GHA + STEPS) * LANES] = ZERO
                for n in range(states):
                    s[A2 * LANES : (A2 + 1) * LANES] = ZERO  # it held sums: no NaN may stay in unused lanes
                    for c in range(lanes):
                        s[A2 * LANES + c] = A[k, n, d0 + c] * LOG2E
                        s[WN * LANES + c] = W[k, n, d0 + c] if has_W else ONE
                        s[STATE * LANES + c] = start[b, k, chunk, n, d0 + c]
                    for c in range(LANES):
                        s[(GRAD + steps) * LANES + c] = g[n * LANES + c]
                    for t in range(STEPS):  # recompute the states of the chunk from `start`
                        if t == steps:
                            break
                        Bt = B[b, k, pixels[t], n]
                        for c in range(LANES):
                            decay = exp2(s[(DELTA + t) * LANES + c] * s[A2 * LANES + c])
                            s[(DECAY + t) * LANES + c] = decay
                            s[(STATE + t + 1) * LANES + c] = (
                                decay * s[(STATE + t) * LANES + c] + s[(X + t) * LANES + c] * Bt
                            )
                    for back in range(STEPS):  # the gradients, from the last step to the first
                        t = STEPS - 1 - back
                        if t >= steps:
                            continue
                        pixel = pixels[t]
                        Bt, Ct = B[b, k, pixel, n], C[b, k, pixel, n]
                        dBt, dCt = ZERO, ZERO
                        for c in range(LANES):
                            weighted = s[(DY + t) * LANES + c] * s[WN * LANES + c]
                            grad = s[(GRAD + t + 1) * LANES + c] + weighted * Ct
                            dCt += weighted * s[(STATE + t + 1) * LANES + c]
                            dBt += grad * s[(X + t) * LANES + c]
                            s[(SUM_GB + t) * LANES + c] += grad * Bt
                            grad *= s[(DECAY + t) * LANES + c]
                            s[(GRAD + t) * LANES + c] = grad
                            grad *= s[(STATE + t) * LANES + c]
                            s[(DECAY + t) * LANES + c] = grad  # no longer the decay: the gradient of delta * A
                            s[(SUM_GHA + t) * LANES + c] += grad * s[A2 * LANES + c]
                        dB[block, b, k, pixel, n], dC[block, b, k, pixel, n] = dBt, dCt
                    for c in range(LANES):
                        g[n * LANES + c] = s[GRAD * LANES + c]
                        s[A2 * LANES + c] = ZERO  # from here on the sum of dA over the steps
                    for t in range(STEPS):
                        if t == steps:
                            break
                        for c in range(LANES):
                            s[A2 * LANES + c] += s[(DECAY + t) * LANES + c] * s[(DELTA + t) * LANES + c]
                    for c in range(lanes):
                        dA[b, k, n, d0 + c] += s[A2 * LANES + c]
                    if has_W:
                        for t in range(steps):
                            Ct = C[b, k, pixels[t], n]
                            for c in range(lanes):
                                dW[b, k, n, d0 + c] += s[(STATE + t + 1) * LANES + c] * s[(DY + t) * LANES + c] * Ct
                for t in range(STEPS):
                    if t == steps:
                        break
                    for c in range(LANES):
                        gradient = s[(SUM_GHA + t) * LANES + c] * LN2  # A2 is A log2(e)
                        gradient += s[(SUM_GB + t) * LANES + c] * s[(U + t) * LANES + c]
                        gradient *= s[(SLOPE + t) * LANES + c]
                        s[(SUM_GHA + t) * LANES + c] = gradient
                        s[DBIAS * LANES + c] += gradient
                        s[(SUM_GB + t) * LANES + c] *= s[(DELTA + t) * LANES + c]
                    if has_D:
                        for c in range(LANES):
                            s[DD * LANES + c] += s[(DY + t) * LANES + c] * s[(U + t) * LANES + c]
                            s[(SUM_GB + t) * LANES + c] += s[(DY + t) * LANES + c] * s[DK * LANES + c]
                add(s, SUM_GB, duk, pixels)
                add(s, SUM_GHA, ddeltak, pixels)
            for c in range(lanes):
                dD[b, k, d0 + c] = s[DD * LANES + c]
                dbias[b, k, d0 + c] = s[DBIAS * LANES + c]
