"""Pretraining on patches, and the weights that come with the package."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammo_utils.config import ModelSettings
from mammo_utils.models import weights
from mammo_utils.models.encoders import build_encoder
from mammo_utils.models.system import build_system
from mammo_utils.models.weights import PATCH_FILES, PATCH_FOLDER, WeightsError
from mammo_utils.training.dataset import DEVIATION, MEAN
from mammo_utils.training.patches import PatchSettings, draw_patches
from mammo_utils.training.pretrain import Recipe, pretrain, save_encoder

SMALL = ModelSettings(weights="patches", width=0.25)


@pytest.fixture(scope="module")
def patches():
    """Patches of exams that pretraining does not use, 0 or 1 where the label is plain."""
    drawn, targets = draw_patches(PatchSettings(n_exams=110, seed=77))
    plain = np.isin(targets, (0, 1))
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    x = torch.from_numpy(drawn[plain])[:, None].expand(-1, 3, -1, -1) / 255
    return (x - mean) / deviation, targets[plain].astype(int)


def probe(encoder, patches):
    """AUC of a logistic regression on the features of the second half of the patches."""
    x, y = patches
    with torch.no_grad():
        features = encoder.eval()(x).numpy()
    half = len(y) // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(features[:half], y[:half])
    return roc_auc_score(y[half:], model.decision_function(features[half:]))


@pytest.mark.parametrize("name", PATCH_FILES)
def test_the_weights_of_the_package_see_the_direction_of_strands(name, patches):
    torch.manual_seed(0)
    untrained = build_encoder(name, SMALL.model_copy(update={"weights": ""}))
    assert probe(build_encoder(name, SMALL), patches) > 0.95
    assert probe(untrained, patches) < 0.8


def test_files_are_those_of_the_list():
    assert {file.name for file in PATCH_FOLDER.glob("*.safetensors")} == set(PATCH_FILES.values())


def test_pretraining_is_repeatable_and_its_file_loads(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    stages = [(rng.integers(0, 255, (60, side, side), np.uint8), rng.integers(0, 2, 60) * 1.0) for side in (32, 48)]
    recipe = Recipe(1e-3, (1, 1))
    (one, scores), (two, again) = (pretrain("hybrid", stages, recipe) for _ in range(2))
    assert scores == again and len(scores) == 2
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    file = save_encoder(one, "hybrid", tmp_path, {"held_out_auc": scores})
    monkeypatch.setattr(weights, "PATCH_FOLDER", tmp_path)
    monkeypatch.setitem(weights.PATCH_FILES, "hybrid", file.name)
    loaded = build_encoder("hybrid", SMALL).state_dict()
    for key, value in one.state_dict().items():
        assert torch.allclose(loaded[key], value, rtol=1e-3, atol=1e-6), key
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="damaged"):
        build_encoder("hybrid", SMALL)


@pytest.mark.parametrize(
    ("system", "change"),
    [("resnet18", {"width": 1.0}), ("vssm_shared", {"vssm_blocks": 5}), ("hybrid_shared", {"width": 0.5})],
)
def test_other_encoders_have_no_such_weights(system, change):
    with pytest.raises(WeightsError, match=r"model\.weights is 'patches'"):
        build_system(system, SMALL, **change)
