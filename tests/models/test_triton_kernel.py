"""The Triton kernels against the reference, run by Triton's interpreter, and compiled for GPUs without one."""

import math
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_resources
from mammo_utils.io import read_json
from mammo_utils.models.selective_scan import scan_paths, selective_scan
from mammo_utils.models.ss2d import SS2D, four_paths

triton = pytest.importorskip("triton", reason="Triton comes with torch on Linux alone")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without a GPU conftest has chosen the interpreter
NAMES = "y u delta A B C D bias".split()


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Triton 3.6 takes the bounds of a loop from arrays of one element, which numpy 2.4 refuses to convert."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            from triton.runtime import interpreter

            prepare = interpreter._patch_lang_tensor

            def prepare_tensor(tensor, scope):
                prepare(tensor, scope)
                scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

            patch.setattr(interpreter, "_patch_lang_tensor", prepare_tensor)
        yield


@pytest.fixture
def kernels(monkeypatch):
    """Small chunks, so that the interpreter, which is slow, meets every border."""
    from mammo_utils.models.kernels import triton_kernel

    def shrink(steps=4, lanes=2, group=2):
        if DEVICE == "cpu":
            monkeypatch.setattr(triton_kernel, "STEPS", steps)
            monkeypatch.setattr(triton_kernel, "LANES", lanes)
            monkeypatch.setattr(triton_kernel, "GROUP", group)

    shrink()
    return shrink


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


def assert_as_reference(values, paths, tolerance=1e-5):
    """The results in the dtypes given against those of the same numbers in float64; rounding is not an error."""
    found = results("triton", values, paths, None)
    expected = results("reference", values, paths, torch.float64)
    for name, a, b, value in zip(NAMES, found, expected, [values[0].float(), *values], strict=True):
        rounding = torch.finfo(value.dtype).eps if value.dtype != torch.float32 else 0
        smallest = torch.finfo(torch.float32).tiny * b.numel()  # strong decays leave less than float32 can hold
        assert (a - b).norm() <= (tolerance + rounding) * b.norm() + smallest, name


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "states"),
    [(1, 1, 1, 1, 1), (2, 2, 3, 1, 2), (1, 3, 3, 2, 1), (1, 1, 5, 1, 3)],
)
def test_values_and_gradients(kernels, batch, height, width, channels, states):
    """One pixel; chunks that are full and not; steps in groups and one by one; channels that fill the lanes or not."""
    assert_as_reference(draw(batch, height, width, channels, states), four_paths(height, width))


@pytest.mark.parametrize(("lanes", "group", "states"), [(8, 4, 4), (4, 1, 2), (4, 4, 5)])
def test_sums_over_lanes(kernels, lanes, group, states):
    """B and C of a pixel on 8 or 4 lanes: one number a lane, or several."""
    kernels(lanes=lanes, group=group)
    assert_as_reference(draw(1, 2, 2, 5, states), four_paths(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_sizes_that_a_gpu_runs(dtype):
    """32 lanes, 16 states, groups of four steps, and gradients rounded once, to the dtype of their input."""
    values = draw(1, 2, 2, 33, 16)
    for i in (0, 1, 3, 4):
        values[i] = values[i].to(dtype)
    assert_as_reference(values, four_paths(2, 2))


def test_the_same_bits_in_each_run_and_for_each_image(kernels):
    values, paths = draw(1, 1, 3, 2, 1), four_paths(1, 3)
    once, again = (results("triton", values, paths, None) for _ in range(2))
    twice = [torch.cat([x, x]) if i in (0, 1, 3, 4) else x for i, x in enumerate(values)]
    y = results("triton", twice, paths, None)[0]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert torch.equal(y[0], y[1]) and torch.equal(y[:1], once[0])


def test_arrays_that_32_bits_cannot_index(kernels, monkeypatch, tmp_path):
    """Paths 2^30 numbers apart, in a file without content; and pixels whose offsets are computed in 64 bits."""
    if DEVICE == "cuda":
        pytest.skip("the array lies in a file")
    values, paths = draw(1, 1, 2, 1, 1), four_paths(1, 2)
    expected = scan_paths(*values, paths, backend="triton")
    apart = torch.from_file(str(tmp_path / "large"), shared=True, size=3 * 2**30 + 2, dtype=torch.float32)
    apart = apart.as_strided(values[1].shape, (0, 2**30, 1, 1)).copy_(values[1])
    monkeypatch.setattr("mammo_utils.models.kernels.triton_kernel.MOST", 0)
    found = scan_paths(values[0], apart, *values[2:], paths, backend="triton")
    assert torch.equal(found, expected)


def test_compiled_and_exported(kernels):
    """One graph of a scan in place, compiled and exported, with the values and gradients of the eager one."""
    values, paths = draw(1, 2, 2, 2, 1), four_paths(2, 2).to(DEVICE)
    inverse = paths.argsort(1)

    class Scan(torch.nn.Module):
        def forward(self, *tensors):
            return scan_paths(*tensors, paths, inverse, backend="triton")

    def run(function):
        leaves = [value.to(DEVICE, copy=True).requires_grad_() for value in values]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]

    torch._dynamo.reset()
    expected = run(Scan())
    for found, value in zip(run(torch.compile(Scan(), backend="aot_eager", fullgraph=True)), expected, strict=True):
        assert torch.equal(found, value)
    program = torch.export.export(Scan(), tuple(value.to(DEVICE) for value in values))
    assert any("mammo_utils" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(*(value.to(DEVICE) for value in values)), expected[0])


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


INFINITE = [("A", math.nan), ("A", math.inf), ("A", -math.inf), ("u", math.nan), ("delta", math.inf)]
INFINITE += [("C", math.inf)]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize(("name", "value"), INFINITE)
def test_gradients_of_what_is_not_finite(kernels, name, value):
    """Lanes without a channel and states that are padding do not change the gradients."""
    kernels(lanes=4)
    values, paths = draw(1, 1, 2, 1, 1), four_paths(1, 2)
    values["u delta A B C D delta_bias".split().index(name)].view(-1)[-1] = value
    found, expected = (results(backend, values, paths, torch.float32) for backend in ("triton", "reference"))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


def test_strong_decays_and_what_is_not_finite(kernels):
    values, paths = draw(1, 2, 3, 1, 1), four_paths(2, 3)
    values[2] = -1000 * torch.ones_like(values[2])
    assert_as_reference(values, paths)
    values[0][0, 4, 0] = float("nan")
    found, expected = (results(backend, values, paths, torch.float32) for backend in ("triton", "reference"))
    assert torch.equal(found[0].isnan(), expected[0].isnan())


def test_the_operators_have_fakes_and_a_formula_that_fit(kernels):
    """torch's own checks: schema, fake tensors, autograd, and compilation with symbolic sizes."""
    from mammo_utils.models.kernels import triton_kernel

    values = draw(1, 1, 2, 2, 1)
    values[2] = values[2].transpose(1, 2)
    inputs = *(value.to(DEVICE).requires_grad_() for value in values), four_paths(1, 2, DEVICE)[:2]
    found = torch.library.opcheck(triton_kernel.scan.default, inputs)
    assert set(found.values()) == {"SUCCESS"}
    inputs = tuple(x.detach() for x in inputs)
    y, state, total = triton_kernel.scan(*inputs)
    backward = torch.ops.mammo_utils.scan_by_triton_backward.default
    found = torch.library.opcheck(backward, (*inputs, state, total, y), test_utils=("test_schema", "test_faketensor"))
    assert set(found.values()) == {"SUCCESS"}


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


def test_the_kernels_compile_without_spills(tmp_path):
    """For an A100 and an H100, without a GPU: every number in a register, nothing exchanged through shared memory."""
    command = [sys.executable, "-m", "benchmarks.gpu_resources", "--dtypes", "bf16", "--json", tmp_path / "found.json"]
    options = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    subprocess.run(command, env=options, check=True)
    found, record = read_json(tmp_path / "found.json"), read_json(gpu_resources.RECORD)
    assert len(found["kernels"]) == len(gpu_resources.KERNELS) * len(gpu_resources.TARGETS)
    for row in found["kernels"]:
        assert row["spilled"] == row["shared"] == 0, row
        assert row["shuffles"] == (124 if row["kernel"] == "_write_gradients" else 0), row  # 31 a step, 4 steps
        assert found["versions"] != record["versions"] or row in record["kernels"], "run benchmarks.gpu_resources again"
