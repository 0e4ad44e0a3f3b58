"""Fixtures: made-up runs, alone and in a study that has a cohort and a split."""

import shutil

import pytest

from mammo_utils.study import Study
from tests.conftest import CHECKOUT
from tests.evaluation.fakes import fake_study, write_run

__all__ = ["fake_study", "reported_study"]


@pytest.fixture
def reported_study(small_study, in_small_project, tmp_path, monkeypatch) -> Study:
    """The small study with its cohort and split, and two made-up runs, in a project folder of its own."""
    away = tmp_path / "results" / small_study.name
    for name in ("found", "cohort"):
        shutil.copytree(small_study.folder / name, away / name)
    for name in ("split.json", "prepared.json"):
        shutil.copy(small_study.folder / name, away)
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    shutil.copytree(in_small_project / "config", tmp_path / "config")
    shutil.copytree(CHECKOUT / "notebooks", tmp_path / "notebooks")
    for system in ("resnet18", "hybrid_shared"):
        write_run(small_study.run(system, "multi", "1v5", 0))
    return small_study
