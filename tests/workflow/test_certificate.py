"""Certificates: equal for equal studies, and a difference is found and named."""

import json
import shutil

import pandas as pd
import pytest

from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.tables import results_table
from mammo_utils.io import read_json, write_json
from mammo_utils.provenance import file_hash
from mammo_utils.workflow.certificate import certify, compare_certificates, read_certificate
from mammo_utils.workflow.report import verify, write_report

ID = "hybrid_shared-multi-1v5-seed0"


def certificate(study):
    runs = read_runs(study)
    return certify(study, runs, results_table(runs, study))


@pytest.fixture
def written(reported_study, tmp_path):
    path = tmp_path / "other.json"
    write_json(path, certificate(reported_study))
    return path


def test_a_study_has_the_numbers_of_its_own_certificate(reported_study, written, capsys):
    found = read_json(written)
    for run, digest in found["predictions"].items():
        assert digest == file_hash(reported_study.folder / "runs" / run / "predictions.parquet")
    assert found["facts"]["split"] == [read_json(reported_study.folder / "split.json")["hash"]] and len(
        found["results"]
    )
    assert found["facts"]["cpu"] == ["not recorded"], "an earlier version's runs"
    assert verify(reported_study, written) == 0
    text = capsys.readouterr().out
    assert "the same bytes in 2 of 2 runs" in text and text.endswith("The predictions and the results are the same.\n")
    assert "auc: largest difference 0 " in text and "settings: same" in text


def test_a_changed_prediction_is_found_and_its_largest_difference_named(reported_study, written, capsys):
    folder = reported_study.folder / "runs" / ID
    table = pd.read_parquet(folder / "predictions.parquet")
    own = (table["part"] == "test") & (table["diagnosis"] == 1)
    table.loc[own, "diagnosis_p"] = 0.0  # every malignant breast is now ranked last
    table.to_parquet(folder / "predictions.parquet", index=False)
    metrics = read_json(folder / "metrics.json")
    metrics["files"]["predictions.parquet"] = file_hash(folder / "predictions.parquet")
    write_json(folder / "metrics.json", metrics)
    before = {(r["system"], r["task"], r["metric"], r["side"]): r["value"] for r in read_json(written)["results"]}
    assert verify(reported_study, written) == 1
    text = capsys.readouterr().out
    assert "the same bytes in 1 of 2 runs" in text and f"{ID}: differ" in text
    line = next(line for line in text.splitlines() if line.startswith("auc: "))
    largest = max(v for (s, t, m, _), v in before.items() if (s, t, m) == ("hybrid_shared", "diagnosis", "auc"))
    assert f"largest difference {largest:.3g} (1v5 hybrid_shared multi diagnosis" in line


def test_other_runs_and_other_data_are_named(reported_study, written):
    shutil.rmtree(reported_study.folder / "runs" / ID)
    there = read_certificate(written)
    there["facts"]["store"] = ["f" * 64]
    lines, same = compare_certificates(certificate(reported_study), there)
    assert not same and f"  {ID}: only in one of the studies" in lines
    assert any(line.startswith("store: ") and "ffffffffffff there" in line for line in lines)
    shutil.rmtree(reported_study.folder / "runs")
    lines, same = compare_certificates(certificate(reported_study), there)
    assert not same and lines[-1] == "The two studies differ."


ROW = {"subset": "", "system": "", "task_mode": "", "task": "", "metric": "", "side": "", "value": "high"}
WORDS = json.dumps({"facts": {}, "results": [ROW], "predictions": {}})


NO_ROW = json.dumps({"facts": {}, "results": [1], "predictions": {}})


@pytest.mark.parametrize("text", [WORDS, NO_ROW, "[]", "{}", "no JSON", None])
def test_another_file_is_refused_in_one_sentence(reported_study, tmp_path, text, capsys):
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    assert verify(reported_study, path) == 2
    assert "some.json" in capsys.readouterr().out


def test_the_report_writes_it_and_links_it(reported_study):
    page = write_report(reported_study).read_text("utf-8")
    folder = reported_study.folder
    assert json.loads((folder / "certificate.json").read_text()) == certificate(reported_study)
    for link in ("certificate.json", "model_card.html", "claim.html"):
        assert f'href="{link}"' in page and (folder / "html" / link).is_file()
    assert 'href="certificate.json"' in (folder / "html" / "claim.html").read_text("utf-8")
