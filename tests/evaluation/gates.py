"""Systems whose gate and heads are set by hand, on encoded views in which the lesions are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import nn

from mammo_utils.config import ModelSettings, Training
from mammo_utils.evaluation.recombination import Breasts
from mammo_utils.evaluation.runs import RunResult
from mammo_utils.models.fusion import FUSIONS
from mammo_utils.models.system import System
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.views import Features, subset_predictions
from mammo_utils.vocabulary import VIEWS

LESION, CONSTANT, D = 0, 1, 2  # a view's features: the strength of its finding, and 1


class Encoded(nn.Module):
    """Stands for an encoder: the views are encoded already."""

    out_features = D


def hand_made_system(fusion: str, kind: str) -> System:
    """A system that predicts the diagnosis.

    "which side": the gate chooses the view with the strongest finding, and the heads report the side that it is on.
    "own views": each head reads the findings of its own breast, whatever the gate does.
    """
    model = System([Encoded()], FUSIONS[fusion](D), {"diagnosis": 2}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        if kind == "which side":
            for view in range(4):
                model.fusion.mlp[0].weight[view, view * D + LESION] = 1
                model.fusion.mlp[2].weight[view, view] = 50
            for sign, side in ((1, "L"), (-1, "R")):
                weight = model.heads[f"{side}_diagnosis"].weight[1].view(4, D)
                weight[:2, CONSTANT], weight[2:, CONSTANT] = 10 * sign, -10 * sign
        else:
            for view, name in enumerate(("L", "L", "R", "R")):
                head, place = (
                    (model.heads["diagnosis"], view % 2)
                    if fusion == "per_breast"
                    else (model.heads[f"{name}_diagnosis"], view)
                )
                head.weight[1].view(-1, D)[place, LESION] = 40
                head.bias[1] = -1
    return model


def exams_with_lesions(positive: np.ndarray, seed: int = 0) -> tuple[ExamSet, Features, Breasts]:
    """Exams with four views; each positive breast (E, 2) has a finding in one of its views."""
    rng, n = np.random.default_rng(seed), len(positive)
    views = torch.zeros(n, 4, D)
    views[:, :, CONSTANT] = 1
    for exam, side in np.argwhere(positive == 1):
        views[exam, 2 * side + rng.integers(2), LESION] = 1 + rng.random() / 4
    names, everything = tuple(f"e{i}" for i in range(n)), torch.ones(n, 4, dtype=torch.bool)
    rows = torch.arange(4 * n).view(n, 4)
    labels = {"diagnosis": torch.from_numpy(positive), "birads": torch.full((n, 2), -1)}
    exams = ExamSet(names, names, torch.zeros(1, 2, 2, dtype=torch.uint8), rows, labels, (1, 5), torch.device("cpu"))
    blank = torch.tensor([[0.0, 1.0]]).expand(4, D)
    groups = np.array(names)
    return exams, Features(names, everything, views, blank), Breasts(groups, positive, np.ones((n, 2), bool))


def predictions_of(model: System, exams: ExamSet, features: Features, fusion: str) -> tuple[RunResult, pd.DataFrame]:
    """A finished run as the functions of `evaluation` see it, and its predictions from every subset."""
    views = subset_predictions(model, exams, "test", features, Training(batch_size=64))
    spec = SimpleNamespace(id=fusion, model=ModelSettings(fusion=fusion), training=Training())
    has = views[[f"present_{view}" for view in VIEWS]].to_numpy(int) @ (1 << np.arange(4))
    whole = views[views["views"] == has].reset_index(drop=True)
    metrics = {"reported": "test", "train_views": {"3": 20, "15": 40}}
    return RunResult(spec, SimpleNamespace(finished=True), metrics=metrics, predictions=whole), views
