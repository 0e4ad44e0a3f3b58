"""A published figure depends on the function that draws it, its notebook and the training of its runs."""

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from mammo_utils.io import write_json
from mammo_utils.plots.data import draw_leakage
from mammo_utils.plots.save import save_figure
from mammo_utils.provenance import training_code
from mammo_utils.study import load_study
from mammo_utils.workflow.publish import END, START, StaleFigures, altered_figures, main, publish, stale_figures
from tests.conftest import CHECKOUT


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A study with one figure of one run, in a project of its own."""
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    for name in ("config", "notebooks"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    study = load_study("config/demo.yaml")
    rows = pd.DataFrame({"split": ["by image", "by patient"], "label": "coin", "repeat": 0, "auc": [0.7, 0.5]})
    figure = draw_leakage(rows, "a title")
    save_figure(figure, "one", study.folder / "figures", notebook="05_results", runs=["a"], synthetic=True)
    plt.close(figure)
    write_json(study.folder / "runs" / "a" / "environment.json", {"code": training_code("cpu"), "scan": "cpu"})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").touch()
    return study


@pytest.fixture
def published(finished, tmp_path):
    publish(finished, "config/demo.yaml")
    return tmp_path


def test_a_fresh_figure_is_not_stale_and_old_ones_are_gone(published):
    assert stale_figures(published / "figures") == altered_figures(published / "figures") == []
    assert {file.name for file in (published / "figures").iterdir()} == {"one.png", "manifest.json"}


def test_every_change_is_found(published, capsys):
    figures = published / "figures"
    manifest = json.loads((figures / "manifest.json").read_text())

    def with_entry(**changes):
        write_json(figures / "manifest.json", {**manifest, "figures": [{**manifest["figures"][0], **changes}]})
        return [*stale_figures(figures), *altered_figures(figures)]

    assert with_entry(sha256="0") == ["one.png is not the file that the study wrote."]
    assert with_entry(code="0") == ["The function that draws one.png, or the style of all figures, has changed."]
    assert with_entry(drawn_by="mammo_utils.plots.data:draw_nothing") == [
        "The function that draws one.png, or the style of all figures, has changed."
    ]
    assert with_entry(training={"cpu": "0"}) == ["The training code of the runs in one.png has changed."]
    assert with_entry(notebook_hash="0") == ["The notebook 05_results has changed since it drew one.png."]
    main(["--check"])
    assert capsys.readouterr().out == "warning: The notebook 05_results has changed since it drew one.png.\n"
    assert with_entry() == []
    (figures / "more.png").touch()
    assert altered_figures(figures) == ["more.png is not in the manifest."]
    (figures / "more.png").unlink()
    write_json(published / "docs" / "demo" / "manifest.json", {"notebooks": {"05_results": "0"}})
    main(["--check"])
    assert capsys.readouterr().out.startswith("warning: The notebook 05_results has changed since docs/demo/05_results")
    config = published / "config" / "demo.yaml"
    config.write_text(config.read_text().replace("epochs: ", "epochs: 1"))
    assert stale_figures(figures) == ["config/demo.yaml has changed since the figures were made."]


def test_publishing_refuses_stale_figures(finished, tmp_path):
    write_json(finished.folder / "runs" / "a" / "environment.json", {"code": "0", "scan": "cpu"})
    with pytest.raises(StaleFigures, match=r"training code of the runs in one\.png has changed\. Run the study again"):
        publish(finished, "config/demo.yaml")
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["old.png"], "nothing was copied or removed"


def test_publishing_refuses_a_notebook_whose_code_has_changed_since_it_ran(finished, tmp_path):
    (finished.folder / "notebooks").mkdir()
    path = shutil.copy(tmp_path / "notebooks" / "05_results.ipynb", finished.folder / "notebooks")
    Path(path).write_text(Path(path).read_text().replace("save_figure", "save"))
    with pytest.raises(StaleFigures, match=r"code of the notebook 05_results has changed since it ran\. Run the study"):
        publish(finished, "config/demo.yaml")
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["old.png"], "nothing was copied or removed"


def test_the_readme_gets_the_results_of_the_published_study(finished, tmp_path):
    row = {"subset": "1v5", "task_mode": "multi", "task": "diagnosis", "metric": "auc", "side": "both", "part": "test"}
    row |= {"value": 0.9, "low": 0.85, "high": 0.95, "n_patients": 7, "n_breasts": 14, "n_seeds": 2, "synthetic": True}
    others = [{"side": "L"}, {"metric": "f1_macro"}, {"subset": "1to5"}]
    rows = [row | {"system": "resnet18"} | change for change in ({}, *others)]
    pd.DataFrame(rows).to_csv(finished.folder / "results.csv", index=False)
    write_json(finished.folder / "views.json", {"findings": [{"finding": "One of two cancers is missed."}]})
    (tmp_path / "README.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    publish(finished, "config/demo.yaml")
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert "| ResNet-18 | 2 | 0.900 (0.850 to 0.950) |" in lines and "One of two cancers is missed." in lines
    assert any(line.startswith("Synthetic cohort, BI-RADS 1 vs 5, 7 patients") for line in lines)
