"""The backend mamba-ssm: the inputs of its kernel (on any machine), and parity with the reference (on a GPU)."""

from itertools import product

import pytest
import torch

from mammo_utils.models import selective_scan as module
from mammo_utils.models.selective_scan import _scan_by_reference, scan_paths
from mammo_utils.models.selective_scan import selective_scan as scan
from mammo_utils.models.ss2d import four_paths

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


@pytest.fixture
def kernel(monkeypatch):
    """Replace mamba-ssm's function by one that makes the checks of its C++ code.

    They concern the dtypes, the shapes (C has as many groups as B), and the strides that its Python code leaves."""
    calls = []

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
        assert delta.dtype == z.dtype == u.dtype and return_last_state
        assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
        (batch, channels, length), states = u.shape, A.shape[1]
        B, C = (x[:, None] if x.dim() == 3 else x for x in (B, C))
        groups = B.shape[1] if B.dim() == 4 else 1
        for x in (B, C):
            assert x.dtype == (torch.float32 if x.dim() == 2 else u.dtype)
            assert x.shape == ((channels, states) if x.dim() == 2 else (batch, groups, states, length))
        assert states <= 256 and channels % groups == 0
        assert delta_bias.stride(-1) == 1 or len(delta_bias) == 1
        calls.append(u.dtype)
        y, last = _scan_by_reference(*(x.float() for x in (u, delta, A, B, C, D, delta_bias)), delta_softplus)
        return (y * torch.nn.functional.silu(z.float())).to(u.dtype), last

    monkeypatch.setattr(module, "pick_backend", lambda backend, *_: "mamba_ssm" if backend != "reference" else backend)
    monkeypatch.setattr(module, "_import_mamba_ssm", lambda: selective_scan_fn)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(("B", "C"), PAIRS)
def test_the_kernel_gets_inputs_that_it_accepts(kernel, dtype, B, C):
    x = draw(2, 4, 20, 3, B=B, C=C, groups=2)
    given = {name: v.to(dtype) for name, v in x.items()}
    y, last = scan(**given, delta_softplus=True, return_last_state=True, backend="mamba_ssm")
    expected, state = scan(**given, delta_softplus=True, return_last_state=True, backend="reference")
    assert kernel == [dtype] and y.dtype == dtype and last.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, state.float(), rtol=1e-2 if dtype in HALF else 1e-5, atol=1e-2)


def test_one_group_beside_several_and_a_bias_with_gaps(kernel):
    x = draw(2, 4, 20, 3, B="grouped", C="grouped", groups=2)
    x |= {"B": x["B"][:, :1], "delta_bias": torch.stack([x["delta_bias"]] * 2, 1)[:, 0]}
    found, expected = (scan(**x, backend=backend) for backend in ("mamba_ssm", "reference"))
    torch.testing.assert_close(found, expected)


def test_more_states_than_it_takes(kernel):
    with pytest.raises(ValueError, match="at most 256 states, not 257; use 'reference'"):
        scan(**draw(1, 1, 2, 257), backend="mamba_ssm")


def test_a_missing_package_is_named():
    try:
        import mamba_ssm  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"'mamba_ssm' cannot be imported .* install it"):
            module._import_mamba_ssm()
    else:
        assert callable(module._import_mamba_ssm())


# --- on a GPU -------------------------------------------------------------------------------------------


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    pytest.importorskip("mamba_ssm", reason="mamba-ssm is not installed")
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
