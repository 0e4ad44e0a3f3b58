"""The experiment on batch norm's statistics, on a tiny run."""

import numpy as np

from benchmarks import load_records, report
from benchmarks.batch_norm import VARIANTS, measure_batch_norm
from mammo_utils.io import project_root
from mammo_utils.training.run import load_data, train_run


def test_each_epoch_is_scored_with_each_kind_of_statistics(small_study, in_small_project):
    spec = small_study.run("resnet18", "multi", "1v5", 0, variant=["training.epochs=3"])
    data = load_data(spec)
    found = measure_batch_norm(spec, data)
    assert set(found["auc"]) == set(VARIANTS) and all(len(values) == 3 for values in found["auc"].values())
    assert len(np.unique(list(found["auc"].values()), axis=0)) > 1, "the statistics change the scores"
    rows = []
    train_run(spec, rows.append, data)
    np.testing.assert_allclose([row["validation_auc"] for row in rows], found["auc"]["running"])
    recomputed = small_study.run(
        "resnet18", "multi", "1v5", 0, variant=[*spec.variant, "training.batch_norm=recomputed"]
    )
    train_run(recomputed, rows.append, data)
    np.testing.assert_allclose([row["validation_auc"] for row in rows[3:]], found["auc"]["mean, plain"])
    assert "before the last batch" in "\n".join(report.describe({"batch_norm": [found]}))


def test_the_figures_in_the_docs_are_the_records():
    rows = load_records()["cpu"]["batch_norm"]
    assert len({row["run"] for row in rows}) == 18
    running, recomputed = (max(row["falls"][name] for row in rows) for name in ("running", "mean, plain"))
    words = f"falls by at most {running:.2f} from one epoch to the next with the running ones, and by at most "
    words += f"{recomputed:.2f} with the recomputed ones"
    assert words in (project_root() / "docs" / "choices.md").read_text(encoding="utf-8")
