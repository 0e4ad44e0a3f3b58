"""Mistakes in a notebook's parameters are found before a kernel starts, and its cells can run twice."""

import pytest

from mammo_utils import parameters
from mammo_utils.config import ParameterError
from mammo_utils.parameters import check_parameters, freeze_parameters
from mammo_utils.study import Study
from tests.evaluation import fakes
from tests.evaluation.fakes import write_run

fake_study = fakes.fake_study


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"seed": -1}, "the parameter 'seed' is -1"),
        ({"blocks": -1}, "the parameter 'blocks' is -1"),
        ({"blocks": 99}, "the parameter 'blocks' is 99, but hybrid_shared accepts 0, or 1 to 5."),
        ({"system": "resnet18", "blocks": 3}, "the parameter 'blocks' is 3, but resnet18 accepts 0, because"),
        ({"settings": "training.epochs=3"}, "it must be a list, such as -y '{settings: [\"training.epochs=3\"]}'"),
        ({"settings": ["training.epoch=3"]}, "there is no parameter 'training.epoch'"),
    ],
)
def test_every_parameter_of_a_training_is_checked(values, sentence):
    with pytest.raises(ParameterError) as error:
        check_parameters("04_train", values)
    assert str(error.value).startswith("04_train: ") and sentence in str(error.value)


def test_an_unknown_run_lists_those_that_exist(fake_study):
    with pytest.raises(ParameterError, match="'run' is 'nope', but the finished runs are: none; run notebook 04"):
        check_parameters("06_attention", {"run": "nope"})
    one, two, *_ = fake_study.runs()
    write_run(one)
    write_run(two)
    with pytest.raises(ParameterError, match=f"finished runs are: {one.id}, {two.id}"):
        check_parameters("06_attention", {"run": "nope"})
    assert check_parameters("06_attention", {"run": two.id}).run == two.id


def test_the_cell_of_the_parameters_can_run_again(fake_study, monkeypatch):
    """Later cells replace the study's file by the study, and the run's ID by the run."""
    monkeypatch.setattr(parameters, "_frozen", {})  # other tests of this process freeze parameters too
    run = fake_study.runs()[0]
    write_run(run)
    namespace = {"study": "config/demo.yaml", "settings": ["training.epochs=3"], "run": run.id}
    namespace["In"] = ["# Parameters\nrun = 'papermill injects such a cell'\nstudy = ''"]
    first = freeze_parameters("06_attention", namespace)
    namespace |= {"study": first.loaded, "run": run}
    assert freeze_parameters("06_attention", namespace) == first
    namespace["settings"] = ["training.epochs=4"]
    assert freeze_parameters("06_attention", namespace).loaded.training.epochs == 4
    for wrong in (("training.epochs=4",), None):  # neither list nor what a later cell assigns
        with pytest.raises(ParameterError, match="'settings'"):
            freeze_parameters("06_attention", namespace | {"settings": wrong})
    with pytest.raises(ParameterError, match="the parameter 'study' is Study"):
        freeze_parameters("05_results", {"study": Study(name="a")})
