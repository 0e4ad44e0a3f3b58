"""The reference against theory, the CPU backend against the reference."""

import math

import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_utils.models import backends, selective_scan
from mammo_utils.models.kernels import cpu as scan_cpu
from mammo_utils.models.selective_scan import pick_backend, scan_paths
from mammo_utils.models.selective_scan import selective_scan as scan
from tests.operations import COPIES, Operations

F64 = torch.float64
TOLERANCE = 1e-5  # relative, of the norm, float32


def make(batch, channels, length, states, *, B="varying", C="varying", groups=1, softplus=True, seed=0):
    """Random inputs in float64; softplus=False gives positive deltas as mamba-ssm's own test draws them."""
    torch.manual_seed(seed)
    shapes = {
        "constant": (channels, states),
        "varying": (batch, states, length),
        "grouped": (batch, groups, states, length),
    }
    sequence = (batch, channels, length)
    values = {
        "u": torch.randn(sequence, dtype=F64),
        "delta": torch.randn(sequence, dtype=F64) if softplus else 0.5 * torch.rand(sequence, dtype=F64),
        "A": -0.1 - 2 * torch.rand(channels, states, dtype=F64),
        "B": torch.randn(shapes[B], dtype=F64),
        "C": torch.randn(shapes[C], dtype=F64),
        "D": torch.randn(channels, dtype=F64),
        "z": torch.randn(sequence, dtype=F64),
        "delta_bias": 0.5 * torch.rand(channels, dtype=F64),
    }
    return {name: x.float().double() for name, x in values.items()}  # the same numbers in both dtypes


def run(inputs, backend, dtype, softplus, last=True, restride=lambda name, x: x):
    """Output, last state and every gradient of a random linear function of both, in float64."""
    leaves = {name: x.to(dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    arguments = {name: restride(name, x) for name, x in leaves.items()}
    y, state = scan(**arguments, delta_softplus=softplus, return_last_state=True, backend=backend)
    torch.manual_seed(1)
    weight = torch.randn(y.shape).bfloat16().double()  # numbers that every dtype holds: y's gradient is not rounded
    loss = (y.double() * weight).sum()
    if last:
        loss = loss + (state.double() * torch.randn(state.shape, dtype=F64)).sum()
    loss.backward()
    found = {"y": y.detach(), "last": state.detach()}
    return {k: v.double() for k, v in (found | {f"d{n}": x.grad for n, x in leaves.items()}).items()}


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        error = (found[name] - x).norm() / x.norm().clamp_min(1e-20)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


# --- the reference against theory -----------------------------------------------------------------------


def test_recurrence_is_convolution_where_parameters_do_not_vary():
    """Eq. 6 is Eq. 7: y_t = sum_j K_j u_(t-j) with K_j = C Abar^j Bbar."""
    x = make(2, 3, 20, 4, B="constant", C="constant")
    delta = torch.rand(3, dtype=F64)[None, :, None].expand(2, 3, 20)
    y = scan(x["u"], delta, x["A"], x["B"], x["C"], backend="reference")
    decay = torch.exp(delta[0, :, :1] * x["A"])  # (D, N)
    kernel = torch.stack([(x["C"] * decay**j * delta[0, :, :1] * x["B"]).sum(1) for j in range(20)], dim=1)
    for t in range(20):
        expected = sum(kernel[:, j] * x["u"][:, :, t - j] for j in range(t + 1))
        torch.testing.assert_close(y[:, :, t], expected)


def test_exact_discretisation_is_the_matrix_exponential():
    """Eq. 5: one step of h' = A h + B x with x constant is exp of [[A, B], [0, 0]] delta, here for each state."""
    A, B, delta = -1.7, 0.8, 0.3
    step = scipy.linalg.expm([[A * delta, B * delta], [0.0, 0.0]])
    one = torch.ones(1, 1, 1, dtype=F64)
    _, h = scan(
        one, delta * one, A * one[0], B * one[0], one[0],
        return_last_state=True, backend="reference", discretisation="exact",
    )  # fmt: skip
    assert h.item() == pytest.approx(step[0, 1], rel=1e-12)
    _, simple = scan(one, delta * one, A * one[0], B * one[0], one[0], return_last_state=True, backend="reference")
    assert simple.item() == pytest.approx(delta * B) and abs(simple.item() - h.item()) > 0.01


def test_exact_discretisation_where_A_is_zero():
    one = torch.ones(1, 1, 3, dtype=F64)
    A = torch.zeros(1, 1, dtype=F64, requires_grad=True)
    y = scan(one, 0.5 * one, A, one[0, :, :1], one[0, :, :1], backend="reference", discretisation="exact")
    assert y.tolist() == [[[0.5, 1.0, 1.5]]]
    y.sum().backward()
    assert torch.isfinite(A.grad).all()


@pytest.mark.parametrize("discretisation", ["simplified", "exact"])
def test_gradients_of_the_reference(discretisation):
    x = make(2, 2, 4, 2, B="grouped", groups=2)
    names, tensors = list(x), [v.requires_grad_() for v in x.values()]

    def function(*values):
        return scan(
            **dict(zip(names, values, strict=True)), delta_softplus=True, return_last_state=True,
            backend="reference", discretisation=discretisation,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, tensors)


# --- the CPU backend against the reference --------------------------------------------------------------


def transposed(name, x):
    """The same numbers, channels next to each other in memory instead of time steps."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x


def sliced(name, x):
    return torch.stack([x, torch.zeros_like(x)], dim=-1)[..., 0]


KINDS = ("constant", "varying", "grouped")
TOLERANCES = {torch.float32: TOLERANCE, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # halves: of rounding alone


def agree(x, dtype, softplus, last=True, restride=lambda name, x: x):
    """The CPU backend in `dtype` against the reference in float64 on the same numbers: y, last state, gradients."""
    x = {name: value.to(dtype).double() for name, value in x.items()}
    expected = run(x, "reference", F64, softplus, last)
    assert_close(run(x, "cpu", dtype, softplus, last, restride), expected, TOLERANCES[dtype])


@pytest.mark.parametrize(("B", "C"), [(B, C) for B in KINDS for C in KINDS])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    per_group=st.integers(1, 5),
    groups=st.integers(1, 3),
    length=st.one_of(st.integers(1, 300), st.sampled_from([1, 2, 3, 15, 16, 17, 31, 33, 49, 100])),
    states=st.sampled_from([1, 2, 3, 8, 16, 17]),
    dtype=st.sampled_from(list(TOLERANCES)),
    softplus=st.booleans(),
    left_out=st.sets(st.sampled_from(["D", "z", "delta_bias"])),
    last=st.booleans(),
    restride=st.sampled_from([lambda name, x: x, transposed, sliced]),
    seed=st.integers(0, 100),
)
def test_values_and_gradients(
    B, C, batch, per_group, groups, length, states, dtype, softplus, left_out, last, restride, seed
):
    x = make(batch, per_group * groups, length, states, B=B, C=C, groups=groups, softplus=softplus, seed=seed)
    agree({name: v for name, v in x.items() if name not in left_out}, dtype, softplus, last, restride)


@pytest.mark.parametrize(("groups", "channels", "kind"), [(1, 65, "varying"), (2, 128, "grouped")])
def test_more_channels_than_a_block_has(groups, channels, kind):
    agree(make(2, channels, 33, 16, B=kind, C=kind, groups=groups), torch.float32, True, True, transposed)


# The cases of mamba-ssm's own tests/ops/test_selective_scan.py, narrower: everything on; and lengths it leaves out.
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 3, 49, 100, 128, 256, 372, 512, 1024, 1134, 2048, 4096])
def test_lengths_of_mamba_ssm(length, groups, dtype):
    agree(make(1, 4, length, 3, B="grouped", C="grouped", groups=groups), dtype, True)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_the_output_has_the_inputs_dtype_and_the_state_is_float32(dtype):
    x = {name: v.to(dtype) for name, v in make(2, 4, 20, 3).items()}
    y, state = scan(**x, backend="cpu", return_last_state=True)
    assert y.dtype == dtype and state.dtype == torch.float32
    wide, _ = scan(**{name: v.float() for name, v in x.items()}, backend="cpu", return_last_state=True)
    assert torch.equal(y, wide.to(dtype)), "the gate, too, is computed in float32"


def test_decays_of_exp_minus_100_within_a_chunk():
    """Scans that divide by cumulative products of decays give NaN here; delta is 0.1 and A goes to -1000."""
    x = make(1, 3, 64, 16, softplus=False)
    x["delta"] = torch.full_like(x["delta"], 0.1)
    x["A"] = -torch.logspace(-3, 3, 48, dtype=F64).view(3, 16).float().double()
    x["delta_bias"] = torch.zeros(3, dtype=F64)
    assert_close(run(x, "cpu", torch.float32, False), run(x, "reference", F64, False))


def test_growing_states_overflow_as_in_the_reference():
    x = {name: v.float() for name, v in make(1, 2, 40, 3, softplus=False).items()}
    x["A"] = torch.tensor([[30.0, -1.0, 0.5], [-1.0, -1.0, -1.0]])
    expected, found = (scan(**x, backend=backend) for backend in ("reference", "cpu"))
    assert not torch.isfinite(expected[0, 0, -1])
    assert torch.equal(torch.isfinite(found), torch.isfinite(expected))


@pytest.mark.parametrize(("B", "C"), [("varying", "varying"), ("constant", "grouped"), ("grouped", "constant")])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_values_that_are_not_finite_appear_at_the_same_places(name, value, B, C):
    """Output, last state and every gradient."""
    x = make(2, 4, 20, 3, B=B, C=C, groups=2)
    x[name].view(-1)[x[name].numel() // 2] = value
    expected, found = run(x, "reference", torch.float32, True), run(x, "cpu", torch.float32, True)
    for key in expected:
        assert torch.equal(found[key].isfinite(), expected[key].isfinite()), key
    if name in ("u", "B", "C", "D") or value != value:
        assert not found["y"].isfinite().all()
    assert not all(v.isfinite().all() for v in found.values()) or (name in ("A", "delta", "delta_bias") and value < 0)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(scan_cpu, "LEAST_WORK", 1)
    x = make(3, 130, 40, 4)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        results.append(run(x, "cpu", torch.float32, True))
    for other in results[1:]:
        assert all(torch.equal(other[k], results[0][k]) for k in other)


# --- scans over paths -----------------------------------------------------------------------------------


def test_paths_are_gathered_scans():
    """scan_paths of the CPU backend against the reference backend, on random permutations."""
    torch.manual_seed(0)
    batch, K, length, channels, states = 2, 3, 21, 5, 4
    shapes = [(batch, length, channels), (batch, K, length, channels), (K, channels, states)]
    shapes += [(batch, K, length, states)] * 2 + [(K, channels)] * 2
    paths = torch.stack([torch.randperm(length) for _ in range(K)])
    outputs = []
    values = [torch.randn(s) for s in shapes]
    values[2] = -values[2].exp()
    weight = torch.randn(shapes[0])
    for backend, dtype in (("reference", F64), ("cpu", torch.float32)):
        leaves = [v.to(dtype, copy=True).requires_grad_() for v in values]
        y = scan_paths(*leaves, paths, backend=backend)
        (y * weight).sum().backward()
        outputs.append({str(i): t.double() for i, t in enumerate([y.detach(), *(v.grad for v in leaves)])})
    assert_close(outputs[1], outputs[0])


def images(batch=1, K=2, length=6, channels=3, states=2):
    """Arguments of scan_paths: all ones except A, along a path and its reverse."""
    ones = torch.ones
    path = torch.arange(length)
    return {
        "u": ones(batch, length, channels), "delta": ones(batch, K, length, channels),
        "A": -ones(K, channels, states), "B": ones(batch, K, length, states), "C": ones(batch, K, length, states),
        "D": ones(K, channels), "delta_bias": ones(K, channels), "paths": torch.stack([path, path.flip(0)]),
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"u": torch.ones(6, 3)}, r"u has the shape \(6, 3\); it must be \(batch, L, D\)"),
        ({"delta": torch.ones(1, 1, 6, 3)}, r"delta has the shape \(1, 1, 6, 3\); it must be \(1, 2, 6, 3\)"),
        ({"A": -torch.ones(2, 4, 2)}, r"A has the shape \(2, 4, 2\); .* \(K, D=3, N\)"),
        ({"B": torch.ones(1, 2, 2, 2)}, r"B has the shape \(1, 2, 2, 2\); it must be \(1, 2, 6, 2\)"),
        ({"C": torch.ones(1, 2, 6, 1)}, "C has the shape"),
        ({"D": torch.ones(1, 3)}, r"D has the shape \(1, 3\); it must be \(2, 3\)"),
        ({"delta_bias": torch.ones(2, 1)}, "delta_bias has the shape"),
        ({"paths": torch.arange(3).expand(2, -1)}, r"paths has the shape \(2, 3\); it must be \(2, 6\)"),
        ({"paths": torch.arange(6, dtype=torch.int32).expand(2, -1)}, "paths are torch.int32 .* must be torch.int64"),
        ({"paths": torch.arange(1, 7).expand(2, -1)}, "paths must each visit the pixels 0 to 5 once"),
        ({"paths": torch.tensor([[0, 1, 2, 3, 4, 5], [-1, 1, 2, 3, 4, 5]])}, "must each visit the pixels"),
        ({"paths": torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 2, 3, 4, 5]])}, "must each visit the pixels"),
    ],
)
def test_unfit_paths_and_shapes_are_named(change, sentence, backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=sentence):
        scan_paths(**(images() | change), backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_paths_changed_in_place_are_checked_again(backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = images()
    if backend == "triton":
        scan_paths(**x, backend="reference")  # its kernel is slow to interpret; the checks are shared
    else:
        scan_paths(**x, backend=backend)
    x["paths"][0, 5] = x["paths"][0, 4]
    with pytest.raises(ValueError, match="paths must each visit the pixels 0 to 5 once"):
        scan_paths(**x, backend=backend)
    x["paths"][0, 5] = 400_000_000
    with pytest.raises(ValueError, match="paths must each visit the pixels 0 to 5 once"):
        scan_paths(**x, backend=backend)
    x["paths"][0, 5] = 5
    scan_paths(**x, backend="reference" if backend == "triton" else backend)


def test_paths_without_their_reverse_are_found_when_changed_in_place(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = images()
    scan_paths(**x, backend="reference")
    x["paths"][1] = x["paths"][0]
    with pytest.raises(ValueError, match="the same ones reversed"):
        scan_paths(**x, backend="triton")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_paths_changed_before_the_backward_are_refused(backend):
    """The backward would follow other paths than the forward, or index memory that is not the image's."""
    x = images()
    y = scan_paths(**(x | {"u": x["u"].clone().requires_grad_()}), backend=backend)
    x["paths"][0, 5] = 400_000_000
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_paths_made_in_inference_mode(backend):
    """They have no version: they are checked at every call, and serve a training, too."""
    x = images() | {"u": torch.randn(1, 6, 3, requires_grad=True)}
    with torch.inference_mode():
        made = x["paths"].clone()
    y = scan_paths(**(x | {"paths": made}), backend=backend)
    assert torch.equal(y, scan_paths(**x, backend=backend))
    y.sum().backward()
    with torch.inference_mode():
        made[0, 5] = 400_000_000
        with pytest.raises(ValueError, match="must each visit the pixels"):
            scan_paths(**(x | {"paths": made}), backend=backend)


def test_other_backends_get_one_copy_each_way(monkeypatch):
    """A backend without paths of its own is given each array once per path, by one copy, in its own layout."""
    x, given = images(length=30), []
    x = {name: v if name in ("A", "paths") else torch.randn(v.shape).requires_grad_() for name, v in x.items()}

    def scanned(u, delta, A, B, C, *rest, **options):
        given.extend((u, delta, B, C))
        return u * delta + B.sum() * C.sum()

    scan_paths(**x, backend="reference")  # checks the paths, once
    monkeypatch.setattr(selective_scan, "selective_scan", scanned)
    with Operations() as forward:
        y = scan_paths(**x, backend="reference")
    with Operations() as backward:
        torch.autograd.grad(y.sum(), [x[name] for name in ("u", "delta", "B", "C")])
    assert all(tensor.is_contiguous() for tensor in given)
    for operations in (forward, backward):
        names = operations.names(30)
        assert names.count("gather") == 5 and not set(names) & (COPIES | {"scatter_add", "index_add", "index_put"})


# --- borders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"u": torch.ones(2, 3)}, r"u has the shape \(2, 3\); it must be"),
        ({"delta": torch.ones(2, 4, 6)}, r"delta has the shape \(2, 4, 6\); it must be \(2, 4, 5\)"),
        ({"A": torch.ones(4, 3, dtype=torch.complex64)}, "A is torch.complex64; it must be a real floating point"),
        ({"A": torch.ones(4, 0), "B": torch.ones(2, 0, 5), "C": torch.ones(2, 0, 5)}, r"A .* \(D=4, N\), N not 0"),
        ({"B": torch.ones(2, 3, 6)}, r"B has the shape \(2, 3, 6\); it must be \(4, 3\), \(2, 3, 5\)"),
        ({"C": torch.ones(2, 3, 3, 5)}, "with G dividing 4"),
        ({"B": torch.ones(2, 0, 3, 5)}, r"B has the shape \(2, 0, 3, 5\); it must be"),
        ({"D": torch.ones(3)}, r"D has the shape \(3,\); it must be \(4,\)"),
        ({"B": torch.ones(2, 2, 3, 5), "C": torch.ones(2, 4, 3, 5)}, "B has 2 groups and C has 4"),
        ({"backend": "gpu"}, "no backend 'gpu'; accepted are auto, reference, cpu, mamba_ssm"),
        ({"backend": "mamba_ssm"}, "needs tensors on cuda, these are on cpu"),
        ({"backend": "cpu", "u": torch.ones(2, 4, 5, dtype=F64)}, "use backend='reference' for float64"),
        ({"backend": "cpu", "discretisation": "exact"}, "use backend='reference'"),
        ({"discretisation": "zoh"}, "must be 'simplified' or 'exact'"),
    ],
)
def test_unfit_arguments_are_named(change, sentence):
    arguments = {
        "u": torch.ones(2, 4, 5), "delta": torch.ones(2, 4, 5), "A": -torch.ones(4, 3),
        "B": torch.ones(2, 3, 5), "C": torch.ones(2, 3, 5),
    }  # fmt: skip
    scan(**arguments)
    with pytest.raises(ValueError, match=sentence):
        scan(**(arguments | change))


@pytest.mark.parametrize("backend", ["cpu", "reference", "auto"])
@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_numbers_of_another_kind_or_device_are_refused(name, backend):
    """Integers would cut the output, complex numbers lose their imaginary part; a GPU's tensor is played by meta's."""
    x = {key: v.float() for key, v in make(1, 2, 3, 2).items()}
    for dtype in (torch.int32, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=f"^{name} is {dtype}; it must be a real floating point tensor.$"):
            scan(**(x | {name: x[name].to(dtype)}), backend=backend)
    with pytest.raises(ValueError, match=r"on meta.*they must be on one device\.$"):
        scan(**(x | {name: x[name].to("meta")}), backend=backend)
    images_, name = images(), "delta_bias" if name in ("z", "delta_bias") else name
    with pytest.raises(ValueError, match=f"^{name} is torch.int64; it must be a real"):
        scan_paths(**(images_ | {name: images_[name].long()}), backend=backend)


def test_the_backend_of_auto(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_backend("auto", cpu) == "cpu"
    assert pick_backend("auto", cpu, F64) == "reference"
    monkeypatch.setattr(backends, "_find_backend", lambda device: "mamba_ssm")
    assert pick_backend("auto", gpu) == "mamba_ssm"
    assert pick_backend("auto", gpu, F64) == "reference"


def test_softplus_of_large_and_small_numbers():
    """The kernel's own series against torch, through a scan that returns delta: A = 0, one step, B = C = u = 1."""
    delta = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([-1e30, -1e3, 1e3, 1e30])])
    one = torch.ones(len(delta), 1)
    y = scan(one[None], delta[None, :, None], 0 * one, one, one, delta_softplus=True, backend="cpu")
    torch.testing.assert_close(y.flatten().double(), F.softplus(delta.double()), rtol=1e-5, atol=0)


def test_auto_is_the_reference_where_only_triton_works(monkeypatch):
    """Triton scans images only."""
    scan = selective_scan.selective_scan
    u, delta = torch.randn(1, 2, 5), torch.rand(1, 2, 5)
    A, B = -torch.rand(2, 3), torch.randn(1, 3, 5)
    expected = scan(u, delta, A, B, B, backend="reference")
    monkeypatch.setattr("mammo_utils.models.selective_scan.pick_backend", lambda *_: "triton")
    assert torch.equal(scan(u, delta, A, B, B), expected)
    with pytest.raises(ValueError, match="only scans images"):
        scan(u, delta, A, B, B, backend="triton")
