"""The Triton kernels against the reference, run by Triton's interpreter, and compiled for a GPU without one."""

import math
import os
import subprocess
import sys

import pytest
import torch

from mammo_utils.models.selective_scan import scan_paths, selective_scan
from mammo_utils.models.ss2d import SS2D, four_paths

triton = pytest.importorskip("triton", reason="Triton comes with torch on Linux alone")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without a GPU conftest has chosen the interpreter


@pytest.fixture(scope="module")
def kernels():
    """Small tiles, so that the interpreter, which is slow, meets every border."""
    from mammo_utils.models.kernels import triton_kernel

    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setattr(triton_kernel, "STEPS", 4)
            patch.setattr(triton_kernel, "LANES", 2)
        yield


def results(backend, values, paths, dtype):
    leaves = [value.to(DEVICE, dtype or value.dtype, copy=True).requires_grad_() for value in values]
    y = scan_paths(*leaves, paths.to(DEVICE), backend=backend)
    torch.manual_seed(1)
    (y * torch.randn(y.shape).to(y)).sum().backward()
    return [x.double().cpu() for x in (y.detach(), *(leaf.grad for leaf in leaves))]


def draw(batch, height, width, channels, states):
    torch.manual_seed(0)
    length = height * width
    shapes = [(batch, length, channels), (batch, 4, length, channels), (4, channels, states)]
    shapes += [(batch, 4, length, states)] * 2 + [(4, channels)] * 2
    values = [torch.randn(shape) for shape in shapes]
    values[2] = -values[2].exp()
    return values


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "states"),
    [(2, 3, 3, 3, 3), (1, 1, 1, 1, 1), (1, 1, 8, 2, 2), (1, 5, 2, 1, 1)],
)
def test_values_and_gradients(kernels, batch, height, width, channels, states):
    """Tiles that are full and not, one tile and many, sides that differ."""
    values, paths = draw(batch, height, width, channels, states), four_paths(height, width)
    found, expected = (
        results("triton", values, paths, torch.float32),
        results("reference", values, paths, torch.float64),
    )
    for name, a, b in zip("y u delta A B C D bias".split(), found, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm(), name


def test_strides_and_half_precision(kernels):
    """Views of larger arrays, as SS2D makes them, in bfloat16 give the results of float32 copies."""
    u, delta, A, B, C, D, bias = (value.to(DEVICE) for value in draw(1, 2, 3, 2, 2))
    delta = delta.transpose(0, 1).contiguous().transpose(0, 1)
    B, C = torch.stack([B, C], -1).bfloat16().unbind(-1)
    u, delta = u.bfloat16(), delta.bfloat16()
    paths = four_paths(2, 3, DEVICE)
    found = scan_paths(u, delta, A, B, C, D, bias, paths, backend="triton")
    expected = scan_paths(u, delta, A, B, C, D, bias, paths, backend="reference")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_backward(kernels):
    """The gradients of bfloat16 inputs are rounded to bfloat16; those of weights are float32."""
    values, paths = draw(1, 2, 3, 3, 1), four_paths(2, 3)
    for i in (0, 1, 3, 4):
        values[i] = values[i].bfloat16()
    found, expected = (results(backend, values, paths, None) for backend in ("triton", "reference"))
    for name, a, b in zip("y u delta A B C D bias".split(), found, expected, strict=True):
        tolerance = 1e-2 if name in ("u", "delta", "B", "C") else 1e-5
        assert (a - b).norm() <= tolerance * b.norm(), name


INFINITE = [("A", math.nan), ("A", math.inf), ("A", -math.inf), ("u", math.nan), ("delta", math.inf)]
INFINITE += [("C", math.inf)]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize(("name", "value"), INFINITE)
def test_gradients_of_what_is_not_finite(kernels, name, value):
    """The rows of a tile beyond the last pixel (two here) do not change the gradients."""
    values, paths = draw(1, 2, 3, 3, 1), four_paths(2, 3)
    values["u delta A B C D delta_bias".split().index(name)].view(-1)[-1] = value
    found, expected = (results(backend, values, paths, torch.float32) for backend in ("triton", "reference"))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


def test_strong_decays_and_what_is_not_finite(kernels):
    values, paths = draw(1, 3, 3, 2, 2), four_paths(3, 3)
    values[2] = -1000 * torch.ones_like(values[2])
    found, expected = (
        results("triton", values, paths, torch.float32),
        results("reference", values, paths, torch.float64),
    )
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    values[0][0, 4, 1] = float("nan")
    found, expected = (results(backend, values, paths, torch.float32) for backend in ("triton", "reference"))
    assert torch.equal(found[0].isnan(), expected[0].isnan())


def test_ss2d_runs_on_it(kernels):
    torch.manual_seed(0)
    module = SS2D(2, states=2, backend="triton").to(DEVICE)
    image = torch.randn(1, 2, 3, 2, device=DEVICE)
    found = module(image)
    module.backend = "reference"
    torch.testing.assert_close(found, module(image), rtol=1e-5, atol=1e-6)


def test_paths_are_pairs():
    """The kernel would silently ignore a path without its reverse."""
    values = draw(1, 2, 2, 2, 2)
    u, delta, A, B, C, D, bias = draw(1, 2, 2, 2, 2)
    three = [u, delta[:, :3], A[:3], B[:, :3], C[:, :3], D[:3], bias[:3]]
    for given, paths in ((three, four_paths(2, 2)[:3]), (values, four_paths(2, 2)[[0, 2, 1, 3]])):
        with pytest.raises(ValueError, match="scans K/2 paths and then the same ones reversed"):
            scan_paths(*(v.to(DEVICE) for v in given), paths.to(DEVICE), backend="triton")


def test_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    values = draw(1, 2, 2, 2, 2)
    with pytest.raises(ValueError, match="'triton' needs tensors on cuda"):
        scan_paths(*values, four_paths(2, 2), backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    one = torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match="only scans images"):
        selective_scan(one, one, -one[0], one, one, backend="triton")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mammo_utils.models.kernels import triton_kernel as s

half, options = ("u", "v", "delta", "B", "C", "ddelta"), {"N": 16, "T": s.STEPS, "LANES": s.LANES}
kernels = [
    (s._scan_tiles, options | {"UP": True, "REVERSE": False}),
    (s._scan_tiles, options | {"UP": True, "REVERSE": True}),
    (s._carry_states, {"N": 16, "S": 128, "STATES": 16, "LANES": s.LANES, "UP": True, "REVERSE": False}),
    (s._write_outputs, options | {"ADD": True}),
    (s._write_gradients, options | {"ADD": True}),
]
numbers = ("L", "E", "S", "P", "p", "images")
for kernel, constants in kernels:
    types = {}
    for name in kernel.arg_names:
        number = name in numbers or name[1:2] == "_"
        types[name] = "i32" if number else "*i32" if name == "path" else "*bf16" if name in half else "*fp32"
    types |= dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, types, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": s.WARPS})
    assert len(compiled.asm["cubin"]) > 1000, kernel
    print(kernel.__name__)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    """To machine code of compute capability 9.0 (H100, H200), inputs in bfloat16, without a GPU."""
    options = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["_scan_tiles", "_scan_tiles", "_carry_states", "_write_outputs", "_write_gradients"]
