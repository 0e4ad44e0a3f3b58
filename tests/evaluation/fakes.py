"""Run folders as a training leaves them, made up: answers with a known share of signal."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from mammo_utils.config import Evaluation
from mammo_utils.provenance import file_hash, training_code
from mammo_utils.study import RunSpec, Study, load_study
from mammo_utils.training.run_state import FIRST_FILES
from mammo_utils.vocabulary import SUBSETS, VIEWS
from tests.conftest import CHECKOUT

STRENGTH = {  # of the signal in the answers
    "resnet18": 1.2,
    "resnet50": 1.0,
    "vssm_shared": 0.9,
    "vssm_view_specific": 0.7,
    "hybrid_shared": 2.2,
    "hybrid_view_specific": 1.8,
}


def fake_breasts(n_exams: int, subset: str, part: str) -> pd.DataFrame:
    """Breasts of a part: some exams have one side; the labels of both tasks go together."""
    rng = np.random.default_rng(len(part))
    rows = []
    for number in range(n_exams):
        sides = ["L", "R"] if rng.random() < 0.6 else [str(rng.choice(["L", "R"]))]
        for side in sides:
            malignant = int(rng.random() < 0.45)
            birads = int(rng.choice(SUBSETS[subset][len(SUBSETS[subset]) // 2 :])) if malignant else 1
            exam = f"S{1 + number % 2}-{part[0]}{number:03d}"
            present = {f"present_{view}": view[0] in sides for view in VIEWS}
            rows.append(
                {"exam": exam, "group": exam, "side": side, "part": part}
                | {"diagnosis": malignant, "birads": birads if rng.random() < 0.9 else -1}
                | present
            )
    return pd.DataFrame(rows)


def fake_predictions(spec: RunSpec, n_exams: int = 60, strength: float | None = None) -> pd.DataFrame:
    table = pd.concat([fake_breasts(n_exams, spec.subset, part) for part in ("validation", "test")], ignore_index=True)
    strength = STRENGTH.get(spec.system, 1.0) if strength is None else strength
    rng = np.random.default_rng([spec.seed, len(spec.id)])
    labels = table[["diagnosis", "birads"]].copy()
    table = table.drop(columns=["diagnosis", "birads"])
    if spec.task_mode != "birads":
        table["diagnosis"] = labels["diagnosis"]
        table["diagnosis_p"] = 1 / (1 + np.exp(-(strength * (labels["diagnosis"] - 0.5) + rng.normal(size=len(table)))))
    if spec.task_mode != "diagnosis":
        table["birads"] = labels["birads"]
        classes = np.array(SUBSETS[spec.subset])
        logits = strength * (labels["birads"].to_numpy()[:, None] == classes) + rng.normal(
            size=(len(table), len(classes))
        )
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        table[[f"birads_p{c}" for c in classes]] = shares
    logits = rng.normal(size=(len(table), 4)) / 2
    table[[f"weight_{view}" for view in VIEWS]] = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return table


def write_run(spec: RunSpec, *, strength: float | None = None, data_hash: str = "d", code: str = "", **changed) -> None:
    """Write a finished run into ``spec.folder``; `changed` overwrites keys of config.json."""
    table = fake_predictions(spec, strength=strength)
    spec.folder.mkdir(parents=True)
    record = {**spec.model_dump(mode="json"), "run": spec.id, "hash": spec.hash, "data_hash": data_hash, **changed}
    (spec.folder / "config.json").write_text(json.dumps(record))
    environment = {
        "code": code or training_code("none"),
        "scan": "none",
        "commit": "c0ffee",
        "versions": {"python": "3"},
        "device": "cpu",
    }
    (spec.folder / "environment.json").write_text(json.dumps(environment))
    tasks = [task for task in ("diagnosis", "birads") if task in table]
    epochs = np.arange(1, spec.training.epochs + 1)
    curves = {"epoch": epochs, "loss": 0.7 * 0.95**epochs}
    curves |= {f"validation_{task}_auc": 0.9 - 0.4 * 0.8**epochs for task in tasks}
    pd.DataFrame(curves).assign(learning_rate=spec.learning_rate, seconds=1.0).to_csv(
        spec.folder / "epochs.csv", index=False
    )
    table.to_parquet(spec.folder / "predictions.parquet", index=False)
    (spec.folder / "weights.safetensors").write_bytes(b"")
    counts = {
        part: {task: {"n_breasts": int((rows[task] >= 0).sum())} for task in tasks}
        for part, rows in table.groupby("part")
    }
    fields = {"study": spec.study, "system": spec.system, "task_mode": spec.task_mode, "subset": spec.subset}
    metrics = {"run": spec.id, **fields, "seed": spec.seed, "synthetic": True, "reported": "test", "best_epoch": 3}
    metrics |= {"epochs": len(epochs), "exams": {"train": 9}, "parts": counts, "seconds": 12.0, "parameters": 1000}
    metrics["files"] = {name: file_hash(spec.folder / name) for name in FIRST_FILES}
    (spec.folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def fake_study(tmp_path, monkeypatch) -> Study:
    """The demo study with one run per system and ten epochs in a project folder of its own, nothing run yet."""
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    file = tmp_path / "config" / "demo.yaml"
    values = yaml.safe_load(file.read_text())
    values["training"]["epochs"] = 10
    del values["grid"]["more_seeds"], values["grid"]["more_runs"]
    file.write_text(yaml.safe_dump(values))
    return load_study("config/demo.yaml").model_copy(update={"evaluation": Evaluation(resamples=100)})
