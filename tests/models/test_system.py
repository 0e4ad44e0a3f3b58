"""The six systems as training uses them."""

import pytest
import torch
import torch.nn.functional as F

from mammo_utils.config import ModelSettings
from mammo_utils.models.fusion import FUSIONS
from mammo_utils.models.system import build_system, log_probabilities
from mammo_utils.vocabulary import SYSTEMS

PRESENT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]]).bool()


def batch(size=(32, 40)):
    torch.manual_seed(0)
    return torch.randn(3, 4, 3, *size) * PRESENT[:, :, None, None, None]


def step(model, images):
    """One forward and backward; the loss touches every head."""
    logits, weights = model(images, PRESENT)
    loss = sum(F.cross_entropy(x.flatten(0, 1), torch.arange(6) % x.shape[2]) for x in logits.values())
    model.zero_grad()
    loss.backward()
    return logits, weights, loss


@pytest.mark.parametrize("missing", ["zeros", "masked"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_with_absent_views_reaches_every_parameter(system, missing):
    torch.manual_seed(0)
    model = build_system(system, n_birads=3, missing=missing)
    logits, weights, loss = step(model, batch())
    assert {task: tuple(x.shape) for task, x in logits.items()} == {"diagnosis": (3, 2, 2), "birads": (3, 2, 3)}
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (weights[~PRESENT] == 0).all() == (missing == "masked")
    assert torch.isfinite(loss)
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_identical_runs_are_equal_to_the_last_bit(system):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        model = build_system(system)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            step(model, batch((32, 32)))
            optimizer.step()
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("kind", ["vssm", "hybrid"])
def test_view_specific_has_twice_the_encoder_and_gives_each_view_its_own(kind):
    shared, specific = build_system(f"{kind}_shared"), build_system(f"{kind}_view_specific")
    count = [sum(p.numel() for p in m.encoders.parameters()) for m in (shared, specific)]
    assert count[1] == 2 * count[0]
    specific.eval()
    images, all_present = batch((32, 32)), torch.ones_like(PRESENT)
    with torch.no_grad():
        v = specific.encode_views(images, all_present)
        for view, encoder in enumerate((0, 1, 0, 1)):  # L_CC, L_MLO, R_CC, R_MLO
            torch.testing.assert_close(v[:, view], specific.encoders[encoder](images[:, view]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(v[:, 0], specific.encoders[1](images[:, 0]), atol=1e-3)


def test_an_absent_views_pixels_have_no_influence_where_masked():
    for missing, equal in (("masked", True), ("zeros", False)):
        torch.manual_seed(0)
        model = build_system("hybrid_view_specific", missing=missing).eval()
        images = batch()
        other = torch.where(PRESENT[:, :, None, None, None], images, torch.tensor(5.0))
        with torch.no_grad():
            a, b = (model(x, PRESENT)[0]["diagnosis"] for x in (images, other))
        assert torch.equal(a, b) == equal


def test_an_exam_does_not_depend_on_its_neighbours():
    model = build_system("hybrid_shared", missing="masked").eval()
    images = batch()
    with torch.no_grad():
        together = model(images, PRESENT)[0]["birads"]
        alone = torch.cat([model(images[i : i + 1], PRESENT[i : i + 1])[0]["birads"] for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_an_exam_without_any_view():
    model = build_system("vssm_view_specific", missing="masked").eval()
    logits, weights = model(batch(), torch.zeros_like(PRESENT))
    assert (weights == 0).all() and torch.isfinite(logits["diagnosis"]).all()


def test_backends_agree():
    torch.manual_seed(0)
    model = build_system("vssm_shared", vssm_blocks=2).eval()
    found = []
    for backend in ("cpu", "reference"):
        for module in model.modules():
            if hasattr(module, "A_log"):
                module.backend = backend
        found.append(model(batch(), PRESENT)[0]["diagnosis"])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("task_mode", "tasks"), [("diagnosis", {"diagnosis": 2}), ("birads", {"birads": 5})])
def test_single_task_systems_have_only_their_heads(fusion, task_mode, tasks):
    model = build_system("hybrid_shared", task_mode=task_mode, n_birads=5, fusion=fusion)
    assert model.classes == tasks
    shared = fusion == "per_breast"
    assert sorted(model.heads) == ([task_mode] if shared else [f"L_{task_mode}", f"R_{task_mode}"])
    step(model, batch((32, 32)))


@pytest.mark.parametrize("missing", ["zeros", "masked"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_contributions_of_the_views_and_the_bias_add_up_to_the_logits(fusion, missing):
    torch.manual_seed(0)
    model = build_system("resnet18", n_birads=5, fusion=fusion, missing=missing).eval()
    v, present = 3 * torch.randn(3, 4, 512), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]]).bool()
    v = v.masked_fill(~model.fusion.counting_views(present)[:, :, None], 0.0)
    with torch.no_grad():
        logits, alpha = model.classify(v, present)
        found = model.contributions(v, alpha)
    for task, n in model.classes.items():
        names = [task, task] if fusion == "per_breast" else [f"L_{task}", f"R_{task}"]
        total = found[task].sum(2) + torch.stack([model.heads[name].bias for name in names])
        centred = [x - x.mean(-1, keepdim=True) for x in (total, logits[task])]
        torch.testing.assert_close(*centred, rtol=0, atol=5e-6)
        assert found[task].shape == (3, 2, 4, n)
        if missing == "masked":
            assert (found[task].transpose(1, 2)[~present] == 0).all(), "an absent view contributes nothing"
        if fusion == "per_breast":
            assert (found[task][:, 0, 2:] == 0).all() and (found[task][:, 1, :2] == 0).all(), "nor the other breast"
        else:
            assert (found[task][0] != 0).all()


def test_contributions_are_the_weighted_centred_head_by_hand():
    torch.manual_seed(0)
    model = build_system("resnet18", task_mode="diagnosis").eval()
    v = torch.randn(2, 4, 512)
    with torch.no_grad():
        _, alpha = model.classify(v, torch.ones(2, 4, dtype=torch.bool))
        found = model.contributions(v, alpha)["diagnosis"]
    w = torch.stack([model.heads[f"{side}_diagnosis"].weight for side in "LR"]).unflatten(2, (4, 512))  # (2, K, 4, D)
    by_hand = torch.einsum("bv,skvd,bvd->bsvk", alpha, w - w.mean(1, keepdim=True), v)
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)


def test_a_system_follows_the_settings_of_its_study():
    """Every model setting reaches the system; changes replace settings."""
    settings = ModelSettings(
        resnet_cut="layer1", vssm_blocks=3, hybrid_blocks=1, block="inner", fusion="concat", missing="masked",
        dropout=0.25, backend="reference",
    )  # fmt: skip
    hybrid = build_system("hybrid_shared", settings, task_mode="birads", n_birads=5)
    encoder = hybrid.encoders[0]
    assert list(dict(encoder.cnn.named_children()))[-1] == "layer1" and len(encoder.stages) == 1
    assert encoder.stages[0].variant == "inner" and encoder.stages[0].ss2d.backend == "reference"
    assert type(hybrid.fusion) is FUSIONS["concat"] and hybrid.fusion.masked
    assert hybrid.dropout.p == 0.25 and hybrid.classes == {"birads": 5}
    assert len(build_system("vssm_shared", settings).encoders[0].stages) == 5, "three blocks, two mergings"
    assert build_system("vssm_shared", settings, backend="cpu").backend == "cpu"
    with pytest.raises(ValueError, match="no weights file"):
        build_system("resnet18", ModelSettings(weights="none.pth"))


def test_the_backend_is_named():
    assert build_system("resnet18").backend == "none"
    assert build_system("hybrid_shared").backend == "cpu"
    assert build_system("hybrid_shared", backend="reference").backend == "reference"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"system": "vgg"}, "system is 'vgg'; accepted are resnet18"),
        ({"task_mode": "both"}, "task_mode is 'both'"),
        ({"fusion": "sum"}, "fusion is 'sum': .* 'gated', 'concat', 'mean', 'per_breast' or 'sigmoid'"),
        ({"missing": "skip"}, "missing is 'skip': .* 'zeros' or 'masked'"),
        ({"backend": "gpu"}, "backend is 'gpu': .* 'mamba_ssm'"),
        ({"block": "mix"}, "block is 'mix': .* 'shuffle' or 'inner'"),
        ({"vssm_blocks": 1}, "vssm_blocks is 1: .* greater than or equal to 2"),
        ({"dropout": 1}, "dropout is 1: .* less than 1"),
        ({"widths": (8, 16)}, r"widths is \(8, 16\): Extra inputs are not permitted"),
        ({"weights": None}, "weights is None: .* valid string"),
    ],
)
def test_values_that_are_not_accepted_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_system(**({"system": "hybrid_shared"} | arguments))


def test_log_probabilities_are_products_of_conditional_probabilities():
    z = torch.tensor([[0.0, 0.0, 0.0], [2.0, -1.0, 0.5]], requires_grad=True)
    p = log_probabilities(z).exp()
    torch.testing.assert_close(p[0], torch.tensor([0.5, 0.25, 0.125, 0.125]))
    a, b, c = torch.sigmoid(z[1]).tolist()
    torch.testing.assert_close(p[1], torch.tensor([1 - a, a * (1 - b), a * b * (1 - c), a * b * c]))
    torch.testing.assert_close(p.sum(1), torch.ones(2))
    torch.testing.assert_close(torch.softmax(log_probabilities(z), 1), p)
    (gradient,) = torch.autograd.grad(log_probabilities(z)[1, 2], z)  # of class 2: it exceeds 0 and 1, but not 2
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 0.0], [1 - a, 1 - b, -c]]))


def test_log_probabilities_stay_finite_and_exceeding_a_class_never_gets_likelier():
    z = 60 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    p = log_probabilities(z)
    assert p.isfinite().all()
    above = 1 - p.exp().cumsum(1)
    assert (above.diff(dim=1) <= 1e-6).all()
    assert log_probabilities(z.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("fusion", ["gated", "per_breast"])
def test_an_ordinal_head_has_one_output_fewer_and_gives_a_logit_per_category(fusion):
    torch.manual_seed(0)
    system = build_system("resnet18", fusion=fusion, birads_head="corn", n_birads=5).eval()
    plain = build_system("resnet18", fusion=fusion, n_birads=5)
    outputs = {name: head.out_features for name, head in system.heads.items()}
    assert set(outputs) == set(plain.heads)
    assert all(n == (4 if name.endswith("birads") else 2) for name, n in outputs.items())
    v, present = torch.randn(3, 4, 512), torch.ones(3, 4, dtype=torch.bool)
    with torch.no_grad():
        logits, alpha = system.classify(v, present)
        parts = system.contributions(v, alpha)
    assert logits["birads"].shape == (3, 2, 5) and list(parts) == ["diagnosis"]
    torch.testing.assert_close(logits["birads"].exp().sum(2), torch.ones(3, 2))
    assert build_system("resnet18", birads_head="corn", task_mode="diagnosis").ordinal == ()
    with pytest.raises(ValueError, match="birads_head is 'coral'"):
        build_system("resnet18", birads_head="coral")
