"""The selective scan on a CPU in numba: Eq. 6 forward, and its backward written by hand.

One thread takes one image and one block of `LANES` channels. Time is cut into chunks of `STEPS`, whose arrays lie in a
scratch array that fits the first-level cache. Within a chunk the scan of one state of `WIDTH` channels is one loop over
the steps that keeps the state in a vector register. Only the state at the start of each chunk is stored, N/STEPS times
the size of the input; the backward recomputes the other states from it. No array of size L x D x N ever exists.

Vectors are a type of their own, `lanes`, because LLVM took three times as long to compile the same loops over
scalars, minutes on a busy machine, and used half of each 512-bit register.

Every array is indexed by pixel, and `path[k, t]` is the pixel that path k visits at step t: a reversed or transposed
scan is another path over the same memory, never a copy. The strides of u, delta, y, B, C and their gradients are
arbitrary, like those of A and W; the others are contiguous. The shapes are:

    u, delta, y   (batch, K, L, D)      B, C   (batch, K, L, N)      A, W   (K, N, D)
    D, bias       (K, D)                start  (batch, K, chunks, N, D): the state before each chunk

K paths whose u and y are expanded over K (stride 0) share their input and add up their output. W scales state n of
channel d in the output and so carries a B or C that is constant in time. Results do not depend on the number of
threads: one thread sums all paths of a block, and the blocks are summed in a fixed order.
"""

from __future__ import annotations

import math
import operator
from functools import update_wrapper

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from mammo_utils.models.kernels import compile_now

LANES = 64  # channels of a block
WIDTH = 16  # channels of a vector, one 512-bit register; LLVM takes several narrower ones where there is none
STEPS = 32  # time steps of a chunk

LOG2E = np.float32(1 / math.log(2))
LN2 = np.float32(math.log(2))
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
SERIES = tuple(map(np.float32, (0.121447787, 0.107153706, 0.143082976, 0.199994445, 0.333333373)))  # see `softplus`

# Offsets in the scratch array s. First come arrays of STEPS x LANES; X is delta * u, SLOPE the derivative of softplus,
# SUM_GB and SUM_GHA are sums over the states, see `backward`. The forward's Y and the backward's DY share one.
U, DELTA, X, Y, SLOPE, SUM_GB, SUM_GHA = (i * STEPS * LANES for i in range(7))
DY = Y
# Then arrays of STEPS x WIDTH: exp(delta A) and its product with the state before; the summands of dB and dC.
DECAY, DECAYED, DB, DC = (7 * STEPS * LANES + i * STEPS * WIDTH for i in range(4))
# Then rows of LANES: D, bias, their gradients, and the state of which the backward recomputes a chunk.
DK, BIAS, DD, DBIAS, H0 = (DC + STEPS * WIDTH + i * LANES for i in range(5))
# Then N times OF_STATE numbers: rows of LANES (A log2(e), W, the state or its gradient, dA, dW), of STEPS (B, C).
STATES = H0 + LANES
OF_STATE = 5 * LANES + 2 * STEPS
OF_A, OF_W, OF_H, OF_DA, OF_DW, OF_B, OF_C = (*(i * LANES for i in range(6)), 5 * LANES + STEPS)

VECTOR, INTEGERS = (ir.VectorType(kind, WIDTH) for kind in (ir.FloatType(), ir.IntType(32)))
CONTRACT = ("contract",)  # a product and a sum may become one instruction; NaN and infinity keep their meaning


class Lanes(types.Type):
    """The type of a vector of WIDTH float32."""


lanes = Lanes("lanes")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, VECTOR)


def _define(operation, instruction: str) -> None:
    """Define an operator of two vectors by an instruction of LLVM."""

    @type_callable(operation)
    def infer(context):
        return lambda a, b: lanes if a is lanes and b is lanes else None

    @lower_builtin(operation, lanes, lanes)
    def build(context, builder, signature, arguments):
        return getattr(builder, instruction)(*arguments, flags=CONTRACT)


for _pair in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _define(*_pair)


def _fill(number: float, kind: ir.VectorType = VECTOR) -> ir.Constant:
    return ir.Constant(kind, [number] * WIDTH)


def _locate(context, builder, signature, arguments):
    """Return the address of the WIDTH numbers that begin at an index of an array."""
    kind, index = signature.args[:2]
    index = cgutils.unpack_tuple(builder, arguments[1]) if isinstance(index, types.BaseTuple) else [arguments[1]]
    array = context.make_array(kind)(context, builder, arguments[0])
    return builder.bitcast(cgutils.get_item_pointer(context, builder, kind, array, index), VECTOR.as_pointer())


@intrinsic
def load(context, array, index):
    """Return the WIDTH numbers that begin at an index and are neighbours in memory."""

    def build(context, builder, signature, arguments):
        return builder.load(_locate(context, builder, signature, arguments), align=4)

    return lanes(array, index), build


@intrinsic
def store(context, array, index, x):
    """Write x to where `load` reads it."""

    def build(context, builder, signature, arguments):
        builder.store(arguments[2], _locate(context, builder, signature, arguments), align=4)
        return context.get_dummy_value()

    return types.void(array, index, lanes), build


def _intrinsic(signature):
    """Make an intrinsic of this signature from a function that builds its code from its values."""

    def decorate(build):
        def infer(context, *kinds):
            return signature, lambda context, builder, signature, values: build(builder, *values)

        return intrinsic(update_wrapper(infer, build, assigned=("__name__", "__doc__"), updated=()))

    return decorate


@_intrinsic(lanes(types.float32))
def splat(builder, number):
    """Return a vector whose elements are all this number."""
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, _fill(0, INTEGERS))


@_intrinsic(types.float32(lanes))
def total(builder, x):
    """Return the sum of the elements."""
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), VECTOR])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{WIDTH}f32")
    return builder.call(function, [ir.FloatType()(0.0), x], fastmath=("reassoc",))


@_intrinsic(lanes(lanes, lanes, lanes))
def where_negative(builder, x, a, b):
    """Return, element by element, a where x is negative and b where it is not."""
    return builder.select(builder.fcmp_ordered("<", x, _fill(0.0)), a, b)


@_intrinsic(lanes(lanes))
def exp2(builder, z):
    """Return 2^z with a relative error of 7e-8: 0 below 2^-126.5, infinity above 2^127.5, NaN for NaN.

    z = i + r with r in [-1/2, 1/2]: 2^r is a minimax polynomial (ours, fitted with p(0) = 1), 2^i is made from its
    bits. Adding 1.5 * 2^23 + 127 rounds z to i and leaves i + 127, the exponent of 2^i, in the low bits of the float.
    A NaN fails both comparisons and so passes through.
    """
    z = builder.select(builder.fcmp_ordered("<", z, _fill(-127.0)), _fill(-127.0), z)
    z = builder.select(builder.fcmp_ordered(">", z, _fill(128.0)), _fill(128.0), z)
    shifted = builder.fadd(z, _fill(12583039.0))
    r = builder.fsub(z, builder.fsub(shifted, _fill(12583039.0)))
    p = _fill(0.00015353361959569156)
    for coefficient in (
        0.0013398875016719103, 0.00961843691766262, 0.055503323674201965, 0.24022647738456726, 0.6931471824645996, 1.0,
    ):  # fmt: skip
        p = builder.fadd(builder.fmul(p, r, flags=CONTRACT), _fill(coefficient), flags=CONTRACT)
    power = builder.shl(builder.bitcast(shifted, INTEGERS), _fill(23, INTEGERS))
    return builder.fmul(p, builder.bitcast(power, VECTOR), flags=CONTRACT)


# --- kernels --------------------------------------------------------------------------------------------

part = njit(error_model="numpy")  # a part of a kernel, compiled with it


@part
def clear(s, first, end):
    """Fill s[first:end] with zeros; a loop is compiled faster than numba's assignment to a slice."""
    for i in range(first, end):
        s[i] = ZERO


@part
def softplus(x):
    """Return log(1 + e^x) and its derivative; with e = e^-|x|, log(1 + e) = 2 artanh(e / (2 + e)), a short series."""
    e = exp2(where_negative(x, x, splat(ZERO) - x) * splat(LOG2E))
    s = e / (splat(TWO) + e)
    v = s * s
    p = splat(SERIES[0])
    for coefficient in SERIES[1:]:
        p = p * v + splat(coefficient)
    log1p = splat(TWO) * (s + s * v * p)
    value = where_negative(x, log1p, x + log1p)
    slope = where_negative(x, e, splat(ONE)) / (splat(ONE) + e)
    return value, slope


@part
def read(s, at, source, b, k, path, t0, steps, d0, width):
    """Copy one chunk of source into s[at:]; where steps are neighbours in memory, reads WIDTH cache lines at once."""
    for c in range(0, width, WIDTH):
        for t in range(steps):
            i, pixel = at + t * LANES + c, path[k, t0 + t]
            if source.strides[3] == 4 and c + WIDTH <= width:
                store(s, i, load(source, (b, k, pixel, d0 + c)))
            else:
                for j in range(min(WIDTH, width - c)):
                    s[i + j] = source[b, k, pixel, d0 + c + j]


@part
def write(s, at, target, b, k, path, t0, steps, d0, width):
    """Copy one chunk in s[at:] to target, or add it where the paths share the target; the loops are those of `read`."""
    adding = k > 0 and target.strides[1] == 0
    for c in range(0, width, WIDTH):
        for t in range(steps):
            i, pixel = at + t * LANES + c, path[k, t0 + t]
            place = (b, k, pixel, d0 + c)
            if target.strides[3] == 4 and c + WIDTH <= width:
                store(target, place, load(s, i) + load(target, place) if adding else load(s, i))
            else:
                for j in range(min(WIDTH, width - c)):
                    before = target[b, k, pixel, d0 + c + j] if adding else ZERO
                    target[b, k, pixel, d0 + c + j] = before + s[i + j]


@part
def begin(s, A, W, D, bias, k, d0, width):
    """Fill the rows of D, bias, A log2(e) and W of path k, and all else with zeros."""
    clear(s, 0, s.size)  # lanes beyond the last channel stay 0
    for c in range(width):
        s[DK + c] = D[k, d0 + c]
        s[BIAS + c] = bias[k, d0 + c]
    for n in range(A.shape[1]):
        at = STATES + n * OF_STATE
        for c in range(width):
            s[at + OF_A + c] = A[k, n, d0 + c] * LOG2E
            s[at + OF_W + c] = W[k, n, d0 + c]


@part
def read_chunk(s, u, delta, B, C, use_softplus, b, k, path, t0, steps, d0, width):
    """Fill U, DELTA (after bias and softplus), SLOPE, X = delta * u, and the rows of B and C of each state."""
    read(s, U, u, b, k, path, t0, steps, d0, width)
    read(s, DELTA, delta, b, k, path, t0, steps, d0, width)
    for t in range(steps):
        pixel = path[k, t0 + t]
        for n in range(B.shape[3]):
            s[STATES + n * OF_STATE + OF_B + t] = B[b, k, pixel, n]
            s[STATES + n * OF_STATE + OF_C + t] = C[b, k, pixel, n]
        for c in range(0, width, WIDTH):
            i = t * LANES + c
            value, slope = load(s, DELTA + i) + load(s, BIAS + c), splat(ONE)
            if use_softplus:
                value, slope = softplus(value)
            store(s, DELTA + i, value)
            store(s, SLOPE + i, slope)
            store(s, X + i, value * load(s, U + i))


F4, I8 = types.float32, types.int64
A3D, A4D = (types.Array(F4, n, "A") for n in (3, 4))
C1D, C2D, C3D, C4D, C5D = (types.Array(F4, n, "C") for n in range(1, 6))
PATH = types.Array(types.uint64, 2, "A")
SHARED = (A4D, A4D, A3D, A4D, A4D, A3D, C2D, C2D, types.boolean, types.boolean, PATH)


@compile_now(types.void(*SHARED, A4D, C5D, C4D, C1D, I8, I8))
def forward(u, delta, A, B, C, W, D, bias, has_D, use_softplus, path, y, start, last, s, first, end):
    """Scan the tasks first..end, each a block of an image: write y, `start` and `last` (batch, K, N, D)."""
    channels, length, states = u.shape[3], u.shape[2], A.shape[1]
    blocks = (channels + LANES - 1) // LANES
    for task in range(first, end):
        b, d0 = task // blocks, (task % blocks) * LANES
        width = min(LANES, channels - d0)
        for k in range(path.shape[0]):
            begin(s, A, W, D, bias, k, d0, width)
            for chunk in range(start.shape[2]):
                t0 = chunk * STEPS
                steps = min(STEPS, length - t0)
                read_chunk(s, u, delta, B, C, use_softplus, b, k, path, t0, steps, d0, width)
                for t in range(steps):
                    for c in range(0, width, WIDTH):
                        i = t * LANES + c
                        store(s, Y + i, load(s, DK + c) * load(s, U + i) if has_D else splat(ZERO))
                for n in range(states):
                    at = STATES + n * OF_STATE
                    for c in range(width):
                        start[b, k, chunk, n, d0 + c] = s[at + OF_H + c]
                    for c in range(0, width, WIDTH):
                        a, w, h = load(s, at + OF_A + c), load(s, at + OF_W + c), load(s, at + OF_H + c)
                        for t in range(steps):  # Eq. 6
                            i = t * LANES + c
                            decay = exp2(load(s, DELTA + i) * a)
                            h = decay * h + load(s, X + i) * splat(s[at + OF_B + t])
                            store(s, Y + i, load(s, Y + i) + h * w * splat(s[at + OF_C + t]))
                        store(s, at + OF_H + c, h)
                write(s, Y, y, b, k, path, t0, steps, d0, width)
            for n in range(states):
                for c in range(width):
                    last[b, k, n, d0 + c] = s[STATES + n * OF_STATE + OF_H + c]


@compile_now(types.void(*SHARED, C5D, C4D, A4D, A4D, A4D, C4D, C5D, C5D, C4D, C3D, C3D, C1D, I8, I8))
def backward(
    u, delta, A, B, C, W, D, bias, has_D, use_softplus, path, start, dlast, dy,
    du, ddelta, dA, dB, dC, dW, dD, dbias, s, first, end,
):  # fmt: skip
    """Run the backward of the tasks first..end.

    Shapes: dy, du, ddelta (batch, K, L, D); dlast (batch, K, N, D). The caller sums dA, dW (batch, K, N, D) and dD,
    dbias (batch, K, D) over the batch, and dB, dC (blocks, batch, K, L, N) over the blocks.

    Let g_t be the gradient of the state h_t through y_t and all later steps. Then Eq. 6 gives
    g_t = W C_t dy_t + decay_{t+1} g_{t+1} with decay_t = exp(delta_t A), and

        d(delta u) = sum_n g B    d(delta A) = g decay h_{t-1}    dB = sum_d g delta u    dC = sum_d W h dy

    SUM_GB and SUM_GHA add up g B and g decay h_{t-1} A over the states; at last they hold du and ddelta.
    """
    channels, length, states = u.shape[3], u.shape[2], A.shape[1]
    blocks = (channels + LANES - 1) // LANES
    for task in range(first, end):
        b, block = task // blocks, task % blocks
        d0 = block * LANES
        width = min(LANES, channels - d0)
        for k in range(path.shape[0]):
            begin(s, A, W, D, bias, k, d0, width)
            for n in range(states):
                for c in range(width):
                    s[STATES + n * OF_STATE + OF_H + c] = dlast[b, k, n, d0 + c]
            for chunk in range(start.shape[2] - 1, -1, -1):  # from the last chunk to the first
                t0 = chunk * STEPS
                steps = min(STEPS, length - t0)
                read_chunk(s, u, delta, B, C, use_softplus, b, k, path, t0, steps, d0, width)
                read(s, DY, dy, b, k, path, t0, steps, d0, width)
                clear(s, SUM_GB, DECAY)
                for n in range(states):
                    at = STATES + n * OF_STATE
                    clear(s, DB, DK)
                    for c in range(width):
                        s[H0 + c] = start[b, k, chunk, n, d0 + c]
                    for c in range(0, width, WIDTH):
                        a, w, g = load(s, at + OF_A + c), load(s, at + OF_W + c), load(s, at + OF_H + c)
                        h, d_a, d_w = load(s, H0 + c), splat(ZERO), splat(ZERO)
                        for t in range(steps):  # recompute the states of the chunk from `start`
                            i = t * LANES + c
                            decay = exp2(load(s, DELTA + i) * a)
                            decayed = decay * h
                            store(s, DECAY + t * WIDTH, decay)
                            store(s, DECAYED + t * WIDTH, decayed)
                            h = decayed + load(s, X + i) * splat(s[at + OF_B + t])
                            d_c = h * load(s, DY + i)
                            d_w = d_w + d_c * splat(s[at + OF_C + t])
                            store(s, DC + t * WIDTH, load(s, DC + t * WIDTH) + d_c * w)
                        for t in range(steps - 1, -1, -1):
                            i = t * LANES + c
                            g = g + load(s, DY + i) * w * splat(s[at + OF_C + t])
                            store(s, DB + t * WIDTH, load(s, DB + t * WIDTH) + g * load(s, X + i))
                            store(s, SUM_GB + i, load(s, SUM_GB + i) + g * splat(s[at + OF_B + t]))
                            d_exponent = g * load(s, DECAYED + t * WIDTH)  # the gradient of delta * A
                            d_a = d_a + d_exponent * load(s, DELTA + i)
                            store(s, SUM_GHA + i, load(s, SUM_GHA + i) + d_exponent * a)
                            g = g * load(s, DECAY + t * WIDTH)
                        store(s, at + OF_H + c, g)
                        store(s, at + OF_DA + c, load(s, at + OF_DA + c) + d_a)
                        store(s, at + OF_DW + c, load(s, at + OF_DW + c) + d_w)
                    for t in range(steps):
                        pixel = path[k, t0 + t]
                        dB[block, b, k, pixel, n] = total(load(s, DB + t * WIDTH))
                        dC[block, b, k, pixel, n] = total(load(s, DC + t * WIDTH))
                for t in range(steps):
                    for c in range(0, width, WIDTH):
                        i = t * LANES + c
                        x_u, g_b = load(s, U + i), load(s, SUM_GB + i)
                        # OF_A is A log2(e)
                        gradient = (load(s, SUM_GHA + i) * splat(LN2) + g_b * x_u) * load(s, SLOPE + i)
                        store(s, SUM_GHA + i, gradient)
                        store(s, DBIAS + c, load(s, DBIAS + c) + gradient)
                        store(s, SUM_GB + i, g_b * load(s, DELTA + i))
                        if has_D:
                            store(s, SUM_GB + i, load(s, SUM_GB + i) + load(s, DY + i) * load(s, DK + c))
                            store(s, DD + c, load(s, DD + c) + load(s, DY + i) * x_u)
                write(s, SUM_GB, du, b, k, path, t0, steps, d0, width)
                write(s, SUM_GHA, ddelta, b, k, path, t0, steps, d0, width)
            for c in range(width):
                dD[b, k, d0 + c] = s[DD + c]
                dbias[b, k, d0 + c] = s[DBIAS + c]
                for n in range(states):
                    dA[b, k, n, d0 + c] = s[STATES + n * OF_STATE + OF_DA + c]
                    dW[b, k, n, d0 + c] = s[STATES + n * OF_STATE + OF_DW + c]
