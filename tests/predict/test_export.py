"""Exported programs: the same predictions as those of the package, in torch's own operators."""

import numpy as np
import pytest
import torch

from mammo_utils.config import Training
from mammo_utils.evaluation.view_ablation import predict_exams
from mammo_utils.models.fusion import FUSIONS
from mammo_utils.models.selective_scan import scan_paths
from mammo_utils.models.ss2d import four_paths
from mammo_utils.models.system import build_system
from mammo_utils.predict.export import Predictor, _scan_in_chunks, make_program
from mammo_utils.training.dataset import ExamSet
from mammo_utils.vocabulary import SYSTEMS

SIZE = 32
SCALING = 1.7, -0.4


def build(system, **settings):
    torch.manual_seed(0)
    model = build_system(system, n_birads=3, weights="", width=0.125, **settings).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training, so that a zero image is none in between
            module.running_mean.uniform_(-0.5, 0.5)
    return model


def exams(n=3):
    """Grey values of n exams, and which views are present: all, all but one, and one alone."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 4, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    present = torch.tensor([[True] * 4, [True, False, True, True], [False, False, True, False]])
    return images, present[:n]


def usual(model):
    """What `predict` computes for the exams: diagnosis, birads, weights, and the calibrated P(malignant)."""
    images, present = exams()
    rows = torch.where(present, torch.arange(12).view(3, 4), -1)
    labels = {task: torch.full((3, 2), -1) for task in ("diagnosis", "birads")}
    names, categories, cpu = ("A", "B", "C"), (1, 3, 5), torch.device("cpu")
    inputs = ExamSet(names, names, images.flatten(0, 1), rows, labels, categories, cpu)
    found = predict_exams(model, inputs, Training())
    outputs = {task: np.stack([of.probabilities[task] for of in found]) for task in labels}
    p = outputs["diagnosis"][..., 1]
    calibrated = 1 / (1 + np.exp(-(np.log(p / (1 - p)) / SCALING[0] + SCALING[1])))
    return outputs | {"weights": np.stack([of.weights for of in found]), "calibrated": calibrated}


def assert_same(outputs, expected, n=3):
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name].detach().numpy(), values[:n], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("missing", ["zeros", "masked"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_predictor_predicts_as_usual(system, fusion, missing):
    model = build(system, fusion=fusion, missing=missing)
    with torch.no_grad():
        assert_same(Predictor([model], [SCALING])(*exams()), usual(model))


@pytest.mark.parametrize(
    ("system", "settings"),
    [
        ("resnet18", {"fusion": "mean", "missing": "masked"}),
        ("vssm_shared", {"fusion": "sigmoid", "missing": "masked", "birads_head": "corn", "vssm_blocks": 2}),
        ("hybrid_view_specific", {"fusion": "per_breast", "block": "inner", "hybrid_blocks": 1}),
    ],
)
def test_a_program_predicts_as_usual(system, settings):
    """On batches of another size than that of the export."""
    model = build(system, **settings)
    program = make_program(Predictor([model], [SCALING]).eval(), SIZE)
    assert not any("mammo_utils" in str(node.target) for node in program.graph.nodes)
    run, known = program.module(), usual(model)
    for n in (3, 1):
        assert_same(run(*exams(n)), known, n)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (5, 7), (8, 8), (9, 11)])
def test_the_plain_scan_equals_the_reference(height, width):
    generator = torch.Generator().manual_seed(2)
    batch, K, L, D, N = 2, 4, height * width, 3, 5
    shapes = [(batch, L, D), (batch, K, L, D), (K, D, N), (batch, K, L, N), (batch, K, L, N), (K, D), (K, D)]
    u, delta, A, B, C, skip, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    path = four_paths(height, width)
    known = scan_paths(u, delta, -A.exp(), B, C, skip, bias, path, backend="reference")
    found = _scan_in_chunks(u[:, None], delta, -A.exp().transpose(1, 2), B, C, None, skip, bias, True, path)[0]
    torch.testing.assert_close(found[:, 0], known)


def test_two_systems_are_averaged_and_uncalibrated_without_a_scaling():
    models = [build("hybrid_shared"), build("hybrid_shared")]
    with torch.no_grad():
        models[1].heads["L_diagnosis"].bias += 1
        single = [Predictor([model], [SCALING])(*exams()) for model in models]
        both = Predictor(models, [SCALING, (None, 0.0)])(*exams())
    assert "calibrated" not in both
    for name, values in both.items():
        torch.testing.assert_close(values, (single[0][name] + single[1][name]) / 2)
