"""A published figure is found out when its picture, its code, its notebook or its configuration changes."""

import json
import shutil

import matplotlib.pyplot as plt
import pytest

from mammo_utils.config import load_study
from mammo_utils.io import write_json
from mammo_utils.plots.save import save_figure
from mammo_utils.provenance import TRAINING_CODE, code_hash
from mammo_utils.workflow.publish import publish, stale
from tests.conftest import CHECKOUT


@pytest.fixture
def published(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    for name in ("config", "notebooks"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    study = load_study("config/demo.yaml")
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    save_figure(figure, "one", study.folder / "figures", notebook="05_results", runs=["a"], synthetic=True)
    plt.close(figure)
    write_json(study.folder / "runs" / "a" / "environment.json", {"code": code_hash(*TRAINING_CODE)})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").touch()
    publish(study, "config/demo.yaml")
    return tmp_path


def test_a_fresh_figure_is_not_stale_and_old_ones_are_gone(published):
    assert stale(published / "figures") == []
    assert {file.name for file in (published / "figures").iterdir()} == {"one.png", "manifest.json"}


def test_every_change_is_found(published):
    figures = published / "figures"
    manifest = json.loads((figures / "manifest.json").read_text())

    def with_entry(**changes):
        write_json(figures / "manifest.json", {**manifest, "figures": [{**manifest["figures"][0], **changes}]})
        return stale(figures)

    assert "one.png is not the picture" in with_entry(sha256="0")[0]
    assert "has changed since" in with_entry(code="0")[0]
    assert "has changed since" in with_entry(training=["0"])[0]
    assert "The notebook 05_results has changed" in with_entry(notebook_hash="0")[0]
    with_entry()
    (figures / "more.png").touch()
    assert stale(figures) == ["more.png is in no manifest."]
    (figures / "more.png").unlink()
    config = published / "config" / "demo.yaml"
    config.write_text(config.read_text().replace("epochs: 10", "epochs: 11"))
    assert stale(figures) == ["config/demo.yaml has changed since the figures were made."]
