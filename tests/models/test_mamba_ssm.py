"""The backend mamba-ssm: the inputs of its kernel (on any machine), and parity with the reference (on a GPU)."""

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import ModuleType

import pytest
import torch

from mammo_utils.models import backends
from mammo_utils.models.backends import pick_backend
from mammo_utils.models.kernels.mamba_kernel import import_kernel
from mammo_utils.models.selective_scan import _scan_by_reference, scan_paths
from mammo_utils.models.selective_scan import selective_scan as scan
from mammo_utils.models.ss2d import SS2D, four_paths

HALF = (torch.float16, torch.bfloat16)
KINDS = ("constant", "varying", "grouped")
PAIRS = tuple(product(KINDS, KINDS))


def draw(batch, channels, length, states, *, B="varying", C="varying", groups=1, seed=0):
    torch.manual_seed(seed)
    shapes = {
        "constant": (channels, states),
        "varying": (batch, states, length),
        "grouped": (batch, groups, states, length),
    }
    sequence = (batch, channels, length)
    return {
        "u": torch.randn(sequence),
        "delta": 0.5 * torch.rand(sequence),
        "A": -0.5 - torch.rand(channels, states),
        "B": torch.randn(shapes[B]),
        "C": torch.randn(shapes[C]),
        "D": torch.randn(channels),
        "z": torch.randn(sequence),
        "delta_bias": 0.5 * torch.rand(channels),
    }


class StandIn(ModuleType):
    """A module `selective_scan_cuda` that makes the checks of the compiled one and scans by the reference.

    The checks concern the dtypes, the shapes (C has as many groups as B) and the strides. Versions after 2.3 of
    mamba-ssm take one more argument."""

    def __init__(self, newer: bool = False):
        super().__init__("selective_scan_cuda")
        self.newer, self.calls = newer, []

    def _check(self, u, delta, A, B, C, D, z, bias):
        (batch, channels, length), states = u.shape, A.shape[1]
        assert delta.dtype == u.dtype and delta.stride(-1) == u.stride(-1) == 1 and z is None
        assert all(x is None or (x.dtype == torch.float32 and x.stride(-1) == 1) for x in (D, bias))
        groups = B.shape[1] if B.dim() == 4 else 1
        for x in (B, C):
            assert x.dtype == (torch.float32 if x.dim() == 2 else u.dtype) and x.stride(-1) == 1
            assert x.shape == ((channels, states) if x.dim() == 2 else (batch, groups, states, length))
        assert A.dtype == torch.float32 and states <= 256 and channels % groups == 0

    def fwd(self, u, delta, A, B, C, D, z, bias, softplus, *borders):
        if borders != ((None,) if self.newer else ()):
            raise TypeError("incompatible function arguments")
        self._check(u, delta, A, B, C, D, z, bias)
        self.calls.append(u.dtype)
        y, last = _scan_by_reference(*(x if x is None else x.float() for x in (u, delta, A, B, C, D, bias)), softplus)
        states = torch.zeros(*last.shape[:2], -(-u.shape[2] // 2048), 2 * last.shape[2])
        states[:, :, -1, 1::2] = last
        return torch.empty_like(delta).copy_(y), states

    def bwd(self, u, delta, A, B, C, D, z, bias, dy, states, out, dz, softplus, again, *borders):
        if borders != ((None,) if self.newer else ()):
            raise TypeError("incompatible function arguments")
        self._check(u, delta, A, B, C, D, z, bias)
        assert dy.dtype == u.dtype and dy.stride(-1) == 1 and out is dz is None
        given = [x if x is None else x.detach().requires_grad_() for x in (u, delta, A, B, C, D, bias)]

        def differentiate():
            y, _ = _scan_by_reference(*(x if x is None else x.float() for x in given), softplus)
            return torch.autograd.grad((y * dy.float()).sum(), [x for x in given if x is not None])

        with ThreadPoolExecutor(1) as pool:  # within an operator, autograd records nothing; another thread is without
            found = iter(pool.submit(differentiate).result())
        return [x if x is None else next(found).contiguous() for x in given]


@pytest.fixture(params=[False, True], ids=["2.3", "newer"])
def kernel(request, monkeypatch):
    """Install the stand-in, and let the GPU's backends run on the CPU."""
    module = StandIn(request.param)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", module)
    monkeypatch.setattr(backends, "GPU", "cpu")
    monkeypatch.setattr(backends, "_found", {})
    return module.calls


def run(x, backend):
    """Output, last state and the gradients of a function of the output."""
    leaves = {name: v.detach().clone().requires_grad_() for name, v in x.items()}
    y, last = scan(**leaves, delta_softplus=True, return_last_state=True, backend=backend)
    y.float().square().sum().backward()
    return [y.detach(), last.detach(), *(v.grad for v in leaves.values())]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(("B", "C"), PAIRS)
def test_the_kernel_gets_inputs_that_it_accepts(kernel, dtype, B, C):
    x = draw(2, 4, 20, 3, B=B, C=C, groups=2)
    given = {name: v.to(dtype) for name, v in x.items()}
    found, expected = run(given, "mamba_ssm"), run(given, "reference")
    assert kernel == [dtype] and found[0].dtype == dtype and found[1].dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        error = (a.float() - b.float()).norm() / b.float().norm()
        assert error < (2e-2 if dtype in HALF else 1e-5)


def test_one_group_beside_several_and_arrays_with_gaps(kernel):
    x = draw(2, 4, 20, 3, B="grouped", C="grouped", groups=2)
    x |= {name: torch.stack([x[name]] * 2, -1)[..., 0] for name in ("u", "delta", "C", "D", "delta_bias")}
    x |= {"B": x["B"][:, :1]}
    found, expected = (scan(**x, backend=backend) for backend in ("mamba_ssm", "reference"))
    torch.testing.assert_close(found, expected)


def test_more_states_than_it_takes(kernel):
    with pytest.raises(ValueError, match="at most 256 states, not 257; use 'reference'"):
        scan(**draw(1, 1, 2, 257), backend="mamba_ssm")


def test_ss2d_is_one_graph_with_it(kernel):
    torch._dynamo.reset()
    image = torch.randn(1, 2, 3, 4)
    module = SS2D(4, states=2)
    expected = module(image)
    assert backends._found == {"cpu": "mamba_ssm"}
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), expected)


# --- which backend "auto" takes on a GPU ----------------------------------------------------------------


def wrong(kernel):
    kernel.fwd = lambda u, delta, A, *_: (torch.zeros_like(u), torch.zeros(*u.shape[:2], 1, 2 * A.shape[1]))


def kernelless(kernel):
    def refuse(*_):
        raise RuntimeError("selective_scan_cuda is not\ninstalled")

    kernel.fwd = refuse


@pytest.fixture
def gpu_without(monkeypatch):
    """A GPU that a CPU plays, with a broken mamba-ssm or none."""

    def prepare(spoil):
        module = None if spoil is None else StandIn()  # None in sys.modules makes an import fail
        if spoil is not None:
            spoil(module)
        monkeypatch.setitem(sys.modules, "selective_scan_cuda", module)
        monkeypatch.setattr(backends, "GPU", "cpu")
        monkeypatch.setattr(backends, "_found", {})

    return prepare


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(None, "cannot be imported"), (kernelless, "selective_scan_cuda is not installed"), (wrong, "results are wrong")],
)
def test_training_goes_on_with_triton(spoil, reason, gpu_without, monkeypatch, capsys):
    """Triton's interpreter is slow: its kernel is played by the reference."""
    gpu_without(spoil)
    tried = []

    def scan_2d(u, delta, A, B, C, D, bias, paths):
        tried.append("triton")
        paths = torch.cat([paths, paths.flip(1)])
        return (scan_paths(u, delta, A.transpose(1, 2), B, C, D, bias, paths, backend="reference"),)

    triton_kernel = ModuleType("triton_kernel")
    triton_kernel.scan = scan_2d
    monkeypatch.setitem(sys.modules, "mammo_utils.models.kernels.triton_kernel", triton_kernel)
    monkeypatch.setattr("mammo_utils.models.kernels.triton_kernel", triton_kernel, raising=False)
    module = SS2D(4, states=2)
    for _ in range(2):
        module(torch.randn(1, 2, 3, 4)).sum().backward()
    assert tried == ["triton"] * 3 and module.A_log.grad.abs().sum() > 0
    printed = capsys.readouterr().out
    assert printed.startswith("The scans run by triton: mamba_ssm does not work (") and reason in printed
    assert printed.count("\n") == 1


def test_training_goes_on_with_the_reference(gpu_without, monkeypatch):
    gpu_without(kernelless)
    monkeypatch.setitem(sys.modules, "mammo_utils.models.kernels.triton_kernel", None)
    module = SS2D(4, states=2)
    with pytest.warns(UserWarning, match="run by the reference: mamba_ssm .*; triton .* 170 kB") as warned:
        for _ in range(2):
            module(torch.randn(1, 2, 3, 4)).sum().backward()
    assert len(warned) == 1
    assert pick_backend("auto", torch.device("cpu")) == "reference"


def test_a_missing_kernel_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    with pytest.raises(ValueError, match=r"'mamba_ssm' cannot be imported .* install mamba-ssm"):
        import_kernel()


# --- on a GPU -------------------------------------------------------------------------------------------


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    pytest.importorskip("selective_scan_cuda", reason="mamba-ssm is not installed")
    return torch.device("cuda")


def results(x, backend, dtype, device, softplus):
    leaves = {name: v.to(device, dtype, copy=True).requires_grad_() for name, v in x.items()}
    y, last = scan(**leaves, delta_softplus=softplus, return_last_state=True, backend=backend)
    torch.manual_seed(1)
    (y.double() * torch.randn(y.shape, dtype=torch.float64).to(device)).sum().backward()
    return {"y": y, "last": last} | {f"d{name}": v.grad for name, v in leaves.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_parity_with_the_reference(gpu, dtype, tolerance):
    """The lengths of mamba-ssm's own tests, and small and odd ones; numbers that both dtypes represent exactly."""
    for length, (B, C), softplus in product((1, 2, 3, 49, 100, 128, 372, 1134, 4096), PAIRS, (False, True)):
        x = {name: v.to(dtype).double() for name, v in draw(2, 4, length, 8, B=B, C=C, groups=2).items()}
        expected = results(x, "reference", torch.float64, "cpu", softplus)
        found = results(x, "mamba_ssm", dtype, gpu, softplus)
        for name, value in expected.items():
            error = (found[name].double().cpu() - value).norm() / value.norm().clamp_min(1e-20)
            assert error <= tolerance, f"L={length} {B} {C}, {name}: relative error {error:.1e}"


@pytest.mark.parametrize("backend", ["mamba_ssm", "triton"])
def test_four_scans_of_an_image(gpu, backend):
    torch.manual_seed(0)
    batch, K, side, channels, states = 2, 4, 17, 24, 16
    shapes = [(batch, side**2, channels), (batch, K, side**2, channels), (K, channels, states)]
    shapes += [(batch, K, side**2, states)] * 2 + [(K, channels)] * 2
    values = [torch.randn(shape) for shape in shapes]
    values[2] = -values[2].exp()
    outputs = []
    for name, device, dtype in (("reference", "cpu", torch.float64), (backend, gpu, torch.float32)):
        leaves = [v.to(device, dtype, copy=True).requires_grad_() for v in values]
        y = scan_paths(*leaves, four_paths(side, side, torch.device(device)), backend=name)
        y.square().sum().backward()
        outputs.append([x.double().cpu() for x in (y.detach(), *(leaf.grad for leaf in leaves))])
    for expected, found in zip(*outputs, strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()
