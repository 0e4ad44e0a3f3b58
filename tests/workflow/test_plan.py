"""A study's command replaces no finished run."""

import pytest

from mammo_utils.config import ParameterError
from mammo_utils.study import load_study
from mammo_utils.workflow.plan import _refuse_to_replace
from tests.evaluation.fakes import write_run


def test_finished_runs_of_an_edited_study_file_are_not_replaced(fake_study):
    write_run(fake_study.runs()[2])
    _refuse_to_replace(fake_study)
    file = fake_study.folder.parents[1] / "config" / "demo.yaml"
    file.write_text(file.read_text().replace("epochs: 10", "epochs: 20"))
    with pytest.raises(
        ParameterError, match=r"is finished with other settings. training.epochs was 10; .* or delete it"
    ):
        _refuse_to_replace(load_study("config/demo.yaml"))


def test_changed_settings_need_another_name(fake_study):
    with pytest.raises(ParameterError, match=r"change training.epochs of the study demo; give .* \"name=mine\""):
        _refuse_to_replace(load_study("config/demo.yaml", ["training.epochs=3"]))
    _refuse_to_replace(load_study("config/demo.yaml", ["training.epochs=3", "name=mine"]))
    _refuse_to_replace(load_study("config/demo.yaml", ["grid.seeds=[0, 1]", "evaluation.resamples=9"]))
