import json
import shutil
from pathlib import Path

import pytest

from mammo_utils.config import ParameterError
from mammo_utils.io import project_root
from mammo_utils.parameters import NOTEBOOKS, check_parameters, freeze_parameters
from mammo_utils.provenance import hash_of
from mammo_utils.study import NEWER, RunSpec, changed_settings, decisive_settings, load_study
from mammo_utils.vocabulary import SYSTEMS
from tests.conftest import CHECKOUT


def test_the_paper_study_is_the_54_runs_of_tables_2_to_4():
    """Their recipe is held against the paper's sentences in test_recipe.py."""
    study = load_study("config/paper.yaml")
    runs = study.runs()
    assert len(runs) == len({run.id for run in runs}) == 54
    assert all(run.blocks == 0 and run.training == study.training and run.model == study.model for run in runs)
    names = [{getattr(run, name) for run in runs} for name in ("system", "task_mode", "subset", "seed")]
    assert [len(values) for values in names] == [6, 3, 3, 1]


def test_the_block_search_is_that_of_section_4_2():
    study = load_study("config/blocks.yaml")
    found = {(run.system, run.blocks) for run in study.runs()}
    assert found == {("vssm_shared", n) for n in range(2, 11)} | {("hybrid_shared", n) for n in range(1, 6)}
    assert len(study.runs()) == 3 * 14 and study.runs()[0].id == "vssm_shared-multi-1v5-seed0-blocks2"
    assert all(run.model.vssm_blocks == run.blocks for run in study.runs() if run.system == "vssm_shared")
    assert len({run.hash for run in study.runs()}) == 42
    for wrong in ("{hybrid_shared: [6]}", "{resnet18: [2]}"):
        with pytest.raises(ParameterError, match="blocks"):
            load_study("config/blocks.yaml", [f"grid.blocks={wrong}"])


def test_the_study_of_folds_is_the_demo_with_another_split():
    demo, folds = load_study("config/demo.yaml"), load_study("config/folds.yaml")
    assert (folds.data, folds.images, folds.model) == (demo.data, demo.images, demo.model)
    for run in folds.runs():
        other = demo.run(run.system, run.task_mode, run.subset, run.seed)
        assert run.learning_rate == other.learning_rate
        assert {"saliency", "learning_rate"} >= {
            name
            for name in type(run.training).model_fields
            if getattr(run.training, name) != getattr(other.training, name)
        }
    assert [run.fold for run in folds.runs()] == 2 * list(range(folds.split.folds))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sytem": "resnet18"}, "'sytem'.*accepted are.*system"),
        ({"system": "resnet"}, "'system' is 'resnet'.*resnet18"),
        ({"seed": "x"}, "'seed' is 'x'.*integer"),
        ({"study": "config/nowhere.yaml"}, "no study file config/nowhere.yaml"),
        ({"settings": ["training.epoch=3"]}, "'training.epoch'.*accepted are epochs"),
        ({"settings": ["training.epochs=many"]}, "'training.epochs' is 'many'.*integer"),
        ({"settings": ["training.patience=0"]}, "'training.patience' is 0.*greater than or equal to 1"),
        ({"settings": ["training.epochs"]}, "'training.epochs'.*section.name=value"),
        ({"settings": ["name.x=1"]}, "'name'.*no section"),
        ({"settings": ["training.learning_rate={resnet: 1}"]}, "resnet"),
    ],
)
def test_a_wrong_parameter_is_one_sentence_that_names_it(values, words):
    with pytest.raises(ParameterError, match=words) as error:
        check_parameters("04_train", values)
    assert "\n" not in str(error.value)


def test_settings_take_the_place_of_the_files():
    study = load_study("config/demo.yaml", ["training.epochs=3", "training.learning_rate={resnet18: 1e-5}"])
    assert study.training.epochs == 3
    assert study.training.learning_rate["resnet18"] == 1e-5, "YAML's 1e-5 is a string, and still a number here"
    assert study.training.learning_rate["resnet50"] == 1e-4, "the others keep the paper's"


def test_drop_path_changes_the_identity_of_a_run_only_where_it_is_not_0():
    run = load_study("config/demo.yaml").run("hybrid_shared", "multi", "1v5", 0)
    settings = decisive_settings(run.model_dump(mode="json"), run.system)
    assert settings["model.drop_path"] == 0
    older = {name: value for name, value in settings.items() if name not in NEWER or NEWER[name] != value}
    assert run.hash == hash_of(older), "as before the newer settings existed"
    other = load_study("config/demo.yaml", ["name=mine", "model.drop_path=0.1"]).run("hybrid_shared", "multi", "1v5", 0)
    assert other.hash != run.hash
    assert changed_settings(run, other) == {"model.drop_path": 0.1} and changed_settings(other, run)
    record = run.model_dump(mode="json")
    del record["model"]["drop_path"]
    assert changed_settings(record, run) == {}, "a record that is older than the setting"


def test_an_ordinal_head_changes_the_identity_of_a_run_and_its_absence_does_not():
    demo, mine = (
        load_study("config/demo.yaml"),
        load_study("config/demo.yaml", ["name=demo2", "model.birads_head=corn"]),
    )
    run, other = (study.run("hybrid_shared", "multi", "1v5", 0) for study in (demo, mine))
    assert run.hash != other.hash and changed_settings(run, other) == {"model.birads_head": "corn"}
    settings = decisive_settings(run.model_dump(mode="json"), run.system)
    assert NEWER["model.birads_head"] == settings.pop("model.birads_head") == "softmax"
    assert run.hash == hash_of(
        {name: value for name, value in settings.items() if name not in NEWER or NEWER[name] != value}
    )


def test_yamls_null_is_the_name_of_a_knob():
    study = load_study("config/demo.yaml", ["data.synthetic={n_exams: 9, null: true}"])
    assert study.data.synthetic.null and study.data.synthetic.n_exams == 9


def test_papermills_unknown_parameter_is_found_in_the_cell_that_it_injects():
    namespace = {
        "study": "config/demo.yaml",
        "seed": 1,
        "bogus": 2,
        "In": ["", "seed: int = 0", "# Parameters\nseed = 1\n"],
    }
    assert freeze_parameters("04_train", namespace).seed == 1, "other names of the namespace are no parameters"
    namespace["In"].append("# Parameters\nbogus = 2\n")
    with pytest.raises(ParameterError, match="'bogus'"):
        freeze_parameters("04_train", namespace)


def test_the_hash_follows_what_decides_the_numbers_alone():
    run = load_study("config/demo.yaml").run("resnet18", "multi", "1v5", 0)

    def of(*settings):
        return load_study("config/demo.yaml", settings).run("resnet18", "multi", "1v5", 0).hash

    assert of() == run.hash == of("images.workers=7") == of("data.folder=elsewhere") == of("grid.seeds=[1, 2]")
    assert of() == of("training.store=mapped"), "the same bytes from elsewhere"
    order_of_sums = ["threads=2", "processes=2", "device=auto", "fused=false", "compile=true", "channels_last=false"]
    assert len({of(f"training.{setting}") for setting in order_of_sums} | {of()}) == 7, "they change the last bits"
    assert of() == of("training.learning_rate.vssm_shared=0.5") == of("model.vssm_blocks=6"), "of other systems"
    changed = {of("training.epochs=3"), of("images.size=32"), of("split.seed=3"), of("data.synthetic.seed=9"), run.hash}
    assert len(changed) == 5
    assert run.model_copy(update={"seed": 1}).hash != run.hash
    assert of("training.recombine=0", "training.view_dropout=0") == run.hash, "half-done runs without them continue"
    assert len({run.hash, of("training.recombine=0.5"), of("training.view_dropout=0.5")}) == 3
    assert of("training.learning_rate={resnet18: 0.5}") != run.hash


def test_a_new_system_leaves_the_hashes_of_others_alone(monkeypatch):
    before = load_study("config/paper.yaml").run("resnet18", "multi", "1v5", 0).hash
    monkeypatch.setitem(SYSTEMS, "lenet", SYSTEMS["resnet50"])
    assert load_study("config/paper.yaml").run("resnet18", "multi", "1v5", 0).hash == before


def test_further_runs_follow_the_grid_once():
    settings = ["grid.systems=[resnet18]", "grid.more_seeds={}", "grid.task_modes=[multi]", "grid.subsets=[1v5]"]
    more = "grid.more_runs=[{system: vssm_shared, task_mode: birads, subset: 1to5, seed: 2}, {system: resnet18}]"
    runs = load_study("config/demo.yaml", [*settings, more, "name=mine"]).runs()
    assert [run.id for run in runs] == ["resnet18-multi-1v5-seed0", "vssm_shared-birads-1to5-seed2"]
    with pytest.raises(ValueError, match=r"grid\.more_runs\.0\.system"):
        load_study("config/demo.yaml", ["grid.more_runs=[{system: lenet}]"])


def test_settings_under_the_files_own_name_make_a_variant_with_its_own_folder():
    study = load_study("config/demo.yaml", ["training.epochs=3", "training.learning_rate.vssm_shared=0.5"])
    assert study.run("resnet18", "multi", "1v5", 0).id == "resnet18-multi-1v5-seed0-epochs=3"
    run = study.run("vssm_shared", "multi", "1v5", 0)
    assert run.id == "vssm_shared-multi-1v5-seed0-epochs=3-vssm_shared=0.5"
    again = load_study("config/demo.yaml").run("vssm_shared", "multi", "1v5", 0, variant=run.variant)
    assert again == run and again.hash == run.hash, "its name makes it again"
    same = f"training.epochs={load_study('config/demo.yaml').training.epochs}"
    assert load_study("config/demo.yaml", [same, "images.workers=3"]).runs()[0].variant == ()
    other = load_study("config/demo.yaml", ["training.epochs=3", "name=mine"])
    assert other.runs()[0].variant == () and other.replaced == ()
    assert study.replaced == ("training.epochs", "training.learning_rate.vssm_shared")


@pytest.mark.parametrize("setting", ["images.size=32", "split.seed=1", "data.corrections=false", "data.source=vindr"])
def test_other_data_need_another_name(setting):
    name = setting.partition("=")[0]
    with pytest.raises(ParameterError, match=f"the settings change {name} of the study demo.*name=mine"):
        check_parameters("02_preprocessing", {"settings": [setting]})
    assert check_parameters("02_preprocessing", {"settings": [setting, "name=mine"]}).loaded.name == "mine"
    assert check_parameters("04_train", {"settings": ["training.epochs=3"]})


def test_a_run_survives_json():
    run = load_study("config/paper.yaml").runs()[7]
    assert RunSpec(**json.loads(run.model_dump_json())) == run


def test_every_notebook_has_a_model():
    assert {p.stem for p in (project_root() / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)


def test_study_files_are_valid():
    files = list((project_root() / "config").glob("*.yaml"))
    assert {load_study(Path("config") / f.name).name for f in files} == {f.stem for f in files}


def test_a_system_may_have_more_seeds():
    settings = ["grid.seeds=[0]", "grid.more_seeds={resnet18: [0, 1, 2]}", "grid.more_runs=[]"]
    study = load_study("config/demo.yaml", settings)
    assert [run.seed for run in study.runs() if run.system == "resnet18"] == [0, 1, 2]
    assert [run.seed for run in study.runs() if run.system == "resnet50"] == [0]
    with pytest.raises(ParameterError, match="lenet"):
        load_study("config/demo.yaml", ["grid.more_seeds={lenet: [1]}"])


def test_folds_need_a_split_by_folds():
    for wrong in (["grid.folds=[0]"], ["grid.folds=[5]", "split={kind: kfold, folds: 5}"]):
        with pytest.raises(ParameterError, match=r"grid\.folds is \[\d\], which needs split\.kind: kfold"):
            load_study("config/demo.yaml", wrong)
    run = load_study("config/demo.yaml", ["split={kind: kfold, folds: 3}", "grid.folds=[0, 2]", "name=x"]).runs()[1]
    assert run.id.endswith("-fold2") and run.split.fold == run.fold == 2 and run.data_name == "1v5 fold 2"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["training.epochs=[3"], r"The value of the setting 'training.epochs=\[3' is not valid YAML"),
        (["grid.seeds=[0, 0]"], r"grid\.seeds lists \[0, 0\], one of them twice"),
        (
            ["grid.systems=[resnet18]", "grid.more_seeds={resnet50: [1]}"],
            "grid.more_seeds names resnet50, which is",
        ),
        (["split.fold=9"], "fold is 9, but of 5 folds the last is 4"),
    ],
)
def test_a_mistake_in_a_setting_is_one_short_sentence(settings, sentence):
    with pytest.raises(ParameterError, match=sentence) as error:
        load_study("config/demo.yaml", settings)
    assert len(str(error.value)) < 200


def test_a_long_variant_has_a_short_name():
    settings = [
        f"training.augmentation={{rotation: {k}.123456789, translation: 0.01234567, scale: 0.0123}}" for k in (1, 2)
    ]
    ids = {load_study("config/demo.yaml", [f"model.weights={'a' * 200}", s]).runs()[0].id for s in settings}
    assert len(ids) == 2 and max(map(len, ids)) < 180


def test_another_data_folder_would_replace_finished_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    study = load_study("config/demo.yaml", ["data.folder=elsewhere"])
    assert study.replaced == ()
    (study.runs()[0].folder).mkdir(parents=True)
    (study.runs()[0].folder / "metrics.json").write_text("{}")
    assert study.replaced == ("data.folder",)
