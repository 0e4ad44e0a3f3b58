"""Predictions from DICOM files: known answers, honest answers about bad exams, packages, and the ways to call it."""

import json
import runpy
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import RLELossless, generate_uid

from mammo_utils.config import ParameterError
from mammo_utils.data.cohort import DataError, load_cohort
from mammo_utils.images.store import load_store
from mammo_utils.parameters import check_parameters
from mammo_utils.predict import load_run, predict
from mammo_utils.predict.model import RESEARCH, SYNTHETIC, Card
from mammo_utils.predict.package import describe, write_package
from mammo_utils.predict.pages import summarise
from mammo_utils.predict.table import NOT_PREDICTED, PREDICTED
from mammo_utils.training.run import train_run
from mammo_utils.vocabulary import SIDES, VIEWS
from tests.conftest import CHECKOUT, SMALL


@pytest.fixture(scope="module")
def runs(small_study, small_project):
    """Two seeds of the reference system, trained for an epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMMO_PROJECT", str(small_project))
        specs = [small_study.run("hybrid_shared", "multi", "1v5", seed) for seed in (0, 1)]
        for spec in specs:
            train_run(spec)
        yield [spec.folder for spec in specs]
        for spec in specs:
            shutil.rmtree(spec.folder)


@pytest.fixture(scope="module")
def images(small_study, small_project):
    """The images of the study's test exams, with their files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMMO_PROJECT", str(small_project))
        cohort = load_cohort(small_study.folder / "cohort")
    used = cohort.images[cohort.images["status"] == "used"]
    return used.assign(file=[small_study.data_folder / path for path in used["path"]])


@pytest.fixture
def project(in_small_project):
    return in_small_project


@pytest.fixture
def model(runs, project):
    return load_run(runs[0])


def stored(folder):
    table = pd.read_parquet(folder / "predictions.parquet")
    return table[table["part"] == "test"].set_index(["exam", "side"])


def full_exam(images):
    """The images of the first exam with four views."""
    counts = images.groupby("exam").size()
    return images[images["exam"] == counts.index[counts == 4][0]]


def write_exam(folder, rows, patient, change=lambda dataset, view: None):
    """Copy an exam's files under another patient's name, changed."""
    folder.mkdir(parents=True)
    study = generate_uid()
    for number, (file, view) in enumerate(zip(rows["file"], rows["view"], strict=True)):
        dataset = pydicom.dcmread(file)
        dataset.PatientID = patient
        dataset.StudyInstanceUID = study
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        change(dataset, view)
        dataset.save_as(folder / f"{number}.dcm")


# --- known answers ----------------------------------------------------------------------------------------


def test_test_exams_get_the_study_s_own_predictions_from_their_files(model, runs, images):
    known = stored(runs[0])
    exams = known.index.get_level_values("exam").unique()
    table = predict(model, list(images.loc[images["exam"].isin(exams), "file"])).set_index(["exam", "side"])
    assert set(table.index.get_level_values("exam")) == set(exams), "research IDs of the data set are kept"
    table = table.loc[known.index]
    assert (table["status"] == PREDICTED).all() and (table["unlike_training"] == "").any()
    np.testing.assert_allclose(table["malignant_p"], known["diagnosis_p"], atol=1e-6)
    for name in ("birads_p1", "birads_p5", *(f"weight_{view}" for view in VIEWS)):
        np.testing.assert_allclose(table[name], known[name], atol=1e-6)
    views = pd.read_parquet(runs[0] / "views.parquet").query("views == 15").set_index(["exam", "side"])
    full = table.index.intersection(views.index)
    assert len(full)
    for view in VIEWS:
        part = views[f"diagnosis_from_{view}_1"] - views[f"diagnosis_from_{view}_0"]
        np.testing.assert_allclose(table.loc[full, f"from_{view}"], part.loc[full], atol=1e-5)


def test_several_runs_and_a_study_are_averaged(runs, images, project, small_study):
    files, known = list(full_exam(images)["file"]), [load_run(folder) for folder in runs]
    single = [predict(model, files) for model in known]
    for together in (
        load_run(*runs),
        load_run(small_study.folder),
        load_run(small_study.folder, system="hybrid_shared"),
    ):
        assert [member.run.seed for member in together.card.members] == [0, 1]
        both = predict(together, files)
        for name in ("malignant_p", "birads_p1", "from_L_CC", "weight_R_MLO"):
            np.testing.assert_allclose(both[name], (single[0][name] + single[1][name]) / 2, rtol=1e-12)
    with pytest.raises(ValueError, match="no finished run with system resnet50, but: hybrid_shared"):
        load_run(small_study.folder, system="resnet50")
    with pytest.raises(ValueError, match="holds no finished run"):
        load_run(small_study.data_folder)


def test_calibration_and_sets_are_the_study_s(runs, images, project, monkeypatch):
    """Scaled on validation as `fit_scaling` fits it; the set has every category that scores below the quantile."""
    model = load_run(runs[0])
    assert model.card.members[0].temperature is None and "is not calibrated: validation has" in " ".join(
        model.card.notes
    )
    assert "There are no conformal sets. Validation has too few patients." in model.card.notes
    fitted = []

    def fit(found, scaling):
        fitted.append((len(found.labels), scaling))
        return 2.0, 0.3, ""

    monkeypatch.setattr("mammo_utils.predict.model.fit_scaling", fit)
    monkeypatch.setattr("mammo_utils.predict.model.conformal_quantile", lambda found: 0.45)
    table = predict(load_run(*runs), list(full_exam(images)["file"]))
    known = pd.read_parquet(runs[0] / "predictions.parquet").query("part == 'validation' and diagnosis >= 0")
    assert fitted == [(len(known), "temperature and intercept")] * 2
    single = [predict(load_run(folder), list(full_exam(images)["file"])) for folder in runs]
    expected = [1 / (1 + np.exp(-(np.log(p / (1 - p)) / 2 + 0.3))) for p in (t["malignant_p"] for t in single)]
    np.testing.assert_allclose(table["malignant_p_calibrated"], np.mean(expected, axis=0), rtol=1e-9)
    for row in table.to_dict("records"):
        shares = {"1": row["birads_p1"], "5": row["birads_p5"]}
        kept = [name for name, p in shares.items() if 1 - p <= 0.45] or [max(shares, key=shares.get)]
        assert row["birads_set"].split() == kept and f"90% set: {', '.join(kept)}" in summarise(row)


def test_runs_of_other_subsets_are_not_averaged(runs, small_study, project):
    other = small_study.run("resnet18", "multi", "1to5", 5)
    train_run(other)
    with pytest.raises(ValueError, match="differ in data set, subset, tasks or images"):
        load_run(runs[0], other.folder)
    shutil.rmtree(other.folder)


# --- honest answers ---------------------------------------------------------------------------------------


def test_a_bad_a_one_sided_and_a_16_bit_exam_get_three_answers(model, images, tmp_path):
    exam = full_exam(images)

    def deepen(dataset, view):
        values = dataset.pixel_array.astype(np.uint16) * 257
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelData = 15, values.tobytes()
        dataset["PixelData"].VR = "OW"

    def cut(dataset, view):
        dataset.PixelData = dataset.PixelData[:100]

    write_exam(tmp_path / "in" / "a", exam, "HOSPITAL 0815", cut)
    write_exam(tmp_path / "in" / "b", exam[exam["side"] == "R"], "HOSPITAL 4711")
    write_exam(tmp_path / "in" / "c", exam, "HOSPITAL 1234", deepen)
    (tmp_path / "in" / "d.dcm").write_bytes(b"no image")
    table = predict(model, tmp_path / "in", tmp_path / "out")
    own = predict(model, list(exam["file"]))
    assert len(table) == 6 and table["exam"].str.fullmatch("exam-[0-9a-f]{12}").all()
    by_exam = {tuple(breasts["status"]): breasts.set_index("side") for _, breasts in table.groupby("exam")}
    bad, one, deep = (
        by_exam[key] for key in ((NOT_PREDICTED, NOT_PREDICTED), (NOT_PREDICTED, PREDICTED), (PREDICTED, PREDICTED))
    )
    assert bad["reason"].str.contains("cannot be decoded").all()
    assert np.isnan(one.at["L", "malignant_p"]) and one.at["L", "reason"] == "no image of this breast can be used"
    assert "without L-CC, L-MLO" in one.at["R", "unlike_training"]
    np.testing.assert_allclose(deep["malignant_p"], own["malignant_p"].to_numpy(), atol=2e-3)
    assert any(row["what"].endswith("d.dcm") for row in table.attrs["unread"])
    pages = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert len(pages) == 6 and pages[3:] == ["index.html", "predictions.csv", "predictions.json"]
    for file in (tmp_path / "out").iterdir():
        text = file.read_text()
        assert "HOSPITAL" not in text and SYNTHETIC in text, file.name
    assert sum("data:image/png;base64," in file.read_text() for file in (tmp_path / "out").glob("0*.html")) == 2
    index = (tmp_path / "out" / "index.html").read_text()
    assert "no image of this breast can be used" in index and "d.dcm" in index
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert RESEARCH in record["model"]["statements"] and len(record["exams"]) == 3
    breast = next(b for exam in record["exams"] for b in exam["breasts"] if len(exam["breasts"][0]["views"]) == 2)
    assert breast["breast"]["value"] == "80248007" and breast["views"][1]["value"] == "399368009"
    assert breast["malignant_p"]["concept"]["value"] == "111047" and breast["malignant_p_calibrated"]["value"] is None
    assert [c["category"]["value"] for c in breast["birads"]["distribution"]] == ["397140005", "397145000"]
    assert sum(c["value"] for c in breast["birads"]["distribution"]) == pytest.approx(100)


def test_only_bad_exams_are_an_answer_too_and_no_mammogram_is_an_error(model, images, tmp_path):
    exam = full_exam(images)
    write_exam(tmp_path / "bad", exam, "X", lambda dataset, view: setattr(dataset, "PixelData", b"\0\0"))
    table = predict(model, tmp_path / "bad", tmp_path / "out")
    assert list(table["status"]) == [NOT_PREDICTED] * 2 and (tmp_path / "out" / "index.html").is_file()
    (tmp_path / "text.dcm").write_text("<html>")
    with pytest.raises(DataError, match=r"text\.dcm: not a DICOM file: it is a web page"):
        predict(model, tmp_path / "text.dcm")
    with pytest.raises(DataError, match="There is no file or folder"):
        predict(model, [tmp_path / "nowhere"])


def test_names_of_exams(model, images, tmp_path):
    """Each study of a patient is an exam; without any ID, each folder; --keep-ids keeps what the header has."""
    exam = full_exam(images)
    left, right = (exam[exam["side"] == side] for side in "LR")
    write_exam(tmp_path / "in" / "1", left, "Doe^Jane")
    write_exam(tmp_path / "in" / "2", right, "Doe^Jane")
    for name, rows in (("3", left), ("4", right)):

        def strip(dataset, view, name=name):
            del dataset.PatientID, dataset.StudyInstanceUID, dataset.SOPInstanceUID

        write_exam(tmp_path / "in" / name, rows, "", strip)
    table = predict(model, tmp_path / "in")
    assert table["exam"].nunique() == 4 and not table["exam"].str.contains("Doe").any()
    assert (table["status"] == PREDICTED).sum() == 4
    kept = predict(model, tmp_path / "in", keep_ids=True)["exam"].unique()
    assert sum(name.startswith("Doe^Jane-") for name in kept) == 2 and sum(n.startswith("exam-") for n in kept) == 2


def test_what_is_unlike_the_training_data_is_marked(model, images, tmp_path):
    exam = full_exam(images)

    def change(dataset, view):
        if view == "L_CC":
            values = np.repeat(dataset.pixel_array, 2, axis=0)
            dataset.Rows, dataset.PixelData = values.shape[0], values.tobytes()
        if view == "R_CC":
            dataset.PixelData = (dataset.pixel_array // 6).tobytes()
        if view == "R_MLO":
            dataset.ImagerPixelSpacing = [0.05, 0.05]

    write_exam(tmp_path / "in", exam[exam["view"] != "L_MLO"], "S1-0001", change)
    text = predict(model, tmp_path / "in")["unlike_training"].iloc[0]
    own = predict(model, list(exam["file"]))["unlike_training"].iloc[0]
    for clause in (
        "without L-MLO; no training exam had L-CC, R-CC, R-MLO alone",
        "rows 192 in L-CC (96 in training)",
        "rows per column 2.4 in L-CC (1.2 in training)",
        "pixel size in mm 0.05 in R-MLO",
        "brightest grey",
    ):
        assert clause in text and clause not in own, clause


def test_without_the_training_images_this_is_stated(runs, small_study, project):
    store = small_study.folder / "store"
    store.rename(store.with_name("away"))
    try:
        card = load_run(runs[0]).card
    finally:
        store.with_name("away").rename(store)
    assert card.ranges == {} and any("not compared with the training images" in note for note in card.notes)


# --- packages ---------------------------------------------------------------------------------------------


def test_a_package_predicts_the_same_elsewhere(runs, images, project, tmp_path, monkeypatch):
    model, files = load_run(*runs), list(full_exam(images)["file"])
    own = predict(model, files)
    digest = write_package(model, tmp_path / "model.zip")
    assert write_package(load_run(*runs), tmp_path / "again.zip") == digest
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path / "elsewhere"))
    packed = load_run(tmp_path / "model.zip")
    pd.testing.assert_frame_equal(predict(packed, files), own, rtol=0, atol=1e-6)
    assert packed.card.statements == model.card.statements and packed.card.run.data.folder == ""
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert str(project) not in archive.read("model.json").decode()
        assert archive.read("README.md").decode() == describe(model.card) and SYNTHETIC in describe(model.card)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files | {"weights-0.safetensors": files["weights-0.safetensors"][:-1] + b"x"}, "not those"),
        (lambda files: files | {"model.json": files["model.json"].replace(b"1v5", b"1v4")}, "not those"),
        (lambda files: {k: v for k, v in files.items() if k != "hashes.json"}, "has no 'hashes.json'"),
        (lambda files: files | {"../evil": b"x"}, r"file '\.\./evil' of 1 bytes, which is not accepted"),
        (lambda files: files | {"weights-0.pkl": b"x"}, "which is not accepted"),
        (lambda files: files | {"README.md": b"x" * 2**21}, "which is not accepted"),
        (lambda files: files | {f"weights-{i}.safetensors": b"" for i in range(50)}, "too many files"),
    ],
)
def test_a_damaged_package_is_refused(model, tmp_path, damage, message):
    write_package(model, tmp_path / "model.zip")
    rewrite(tmp_path / "model.zip", damage(members(tmp_path / "model.zip")))
    with pytest.raises(ValueError, match=rf"model\.zip is no intact package: .*{message}"):
        load_run(tmp_path / "model.zip")


def test_no_zip_and_a_compressed_one_are_refused(model, tmp_path):
    write_package(model, tmp_path / "model.zip")
    rewrite(tmp_path / "bomb.zip", members(tmp_path / "model.zip") | {"README.md": b"x" * 2**20}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        load_run(tmp_path / "bomb.zip")
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(ValueError, match="no intact package: File is not a zip file"):
        load_run(tmp_path / "text.zip")


def test_a_package_of_another_version_is_named(model, tmp_path):
    write_package(model, tmp_path / "model.zip")
    files = members(tmp_path / "model.zip")
    files["model.json"] = files["model.json"].replace(b'"format": 1', b'"format": 2')
    hashes = json.loads(files["hashes.json"])
    from hashlib import sha256

    hashes["model.json"] = sha256(files["model.json"]).hexdigest()
    rewrite(tmp_path / "model.zip", files | {"hashes.json": json.dumps(hashes)})
    with pytest.raises(ValueError, match="is of another version: the parameter 'format'"):
        load_run(tmp_path / "model.zip")
    assert Card.model_fields["format"].default == 1


# --- the ways to call it ----------------------------------------------------------------------------------


def test_three_lines_are_a_script(model, images, tmp_path):
    """Without `if __name__ == "__main__"`, although compressed pixels are decoded in another process."""
    exam = full_exam(images)
    write_exam(
        tmp_path / "in", exam, "X", lambda dataset, view: dataset.compress(RLELossless, generate_instance_uid=False)
    )
    write_package(model, tmp_path / "model.zip")
    script = tmp_path / "script.py"
    script.write_text(
        "from mammo_utils.predict import load_run, predict\n"
        f"table = predict(load_run({str(tmp_path / 'model.zip')!r}), {str(tmp_path / 'in')!r})\n"
        "print(table['malignant_p'].tolist())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    np.testing.assert_allclose(json.loads(line), predict(model, list(exam["file"]))["malignant_p"], atol=1e-6)


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("mammo_utils.predict", run_name="__main__", alter_sys=False)
    return end.value.code


def test_the_command_line(runs, images, project, tmp_path, monkeypatch, capsys):
    exam = full_exam(images)
    write_exam(tmp_path / "in", exam, "HOSPITAL 0815")
    monkeypatch.setattr(sys, "argv", ["predict", "--package", str(runs[0]), str(tmp_path / "model.zip")])
    runpy.run_module("mammo_utils.predict", run_name="__main__")
    assert "SHA-256" in capsys.readouterr().out
    for name in (tmp_path / "model.zip", runs[0], f"results/{runs[0].parents[1].name}"):
        assert command(monkeypatch, name, tmp_path / "in", "--out", tmp_path / "out") == 0
        told = capsys.readouterr().out
        assert (
            told.startswith(SYNTHETIC) and "left breast: predicted, P(malignant) 0." in told and "HOSPITAL" not in told
        )
        assert (tmp_path / "out" / "index.html").as_uri() in told
    assert "There is no file or folder" in command(monkeypatch, runs[0], tmp_path / "none", "--out", tmp_path / "out")
    assert command(monkeypatch, runs[0], tmp_path / "in") == 2 and "--out" in capsys.readouterr().err


def test_an_exported_package_runs_without_this_one(runs, images, project, tmp_path, monkeypatch):
    """A process that imports torch alone predicts the study's test exams from the pixels of its image store."""
    monkeypatch.setattr(sys, "argv", ["predict", "--package", str(runs[0]), str(tmp_path / "model.zip"), "--export"])
    runpy.run_module("mammo_utils.predict", run_name="__main__")
    known, store = stored(runs[0]), load_store(runs[0].parents[1] / "store")
    names = list(known.index.get_level_values("exam").unique())
    rows = store.rows_of(names)
    np.savez(tmp_path / "exams.npz", images=store.images[rows], present=rows >= 0)
    (tmp_path / "script.py").write_text(
        "import json, sys, numpy, torch\n"
        "exams = {name: torch.from_numpy(values) for name, values in numpy.load('exams.npz').items()}\n"
        "more = {'README.md': ''}\n"
        "program = torch.export.load('model.pt2', extra_files=more).module()\n"
        "found = program(exams['images'], exams['present'])['diagnosis'][..., 1].flatten().tolist()\n"
        "print(json.dumps([found, more['README.md'], 'mammo_utils' in sys.modules]))\n"
    )
    words = [sys.executable, "-I", "-W", "ignore", "script.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    found, card, imported = json.loads(done.stdout)
    assert SYNTHETIC in card and not imported
    found = pd.Series(found, pd.MultiIndex.from_product([names, SIDES]))[known.index]
    np.testing.assert_allclose(found, known["diagnosis_p"], atol=1e-5)
    assert command(monkeypatch, runs[0], tmp_path, "--out", tmp_path / "out", "--export") == 2


@pytest.mark.parametrize("named", [True, False])
def test_notebook_08_runs_to_its_end(named, runs, images, small_study, project, capsys):
    """Its code cells as a script: with inputs, and without them on the study's test exams, averaging both seeds."""
    files = [str(file) for file in full_exam(images)["file"]]
    parameters = {"study": "config/paper.yaml", "settings": [*SMALL, "real_exams=false"]}
    parameters |= {"run": runs[0].name, "inputs": files} if named else {}
    namespace = {}
    for cell in json.loads((CHECKOUT / "notebooks" / "08_predict.ipynb").read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            namespace |= parameters
    told, out = capsys.readouterr().out, small_study.folder / "predicted"
    assert "of 3 exams: the largest difference of a probability is" in told and "The package predicts the same." in told
    assert (out / "index.html").is_file() and (out / "model.zip").is_file()
    assert len(namespace["model"].systems) == (1 if named else 2)
    assert namespace["table"]["exam"].nunique() == (1 if named else 3)
    shutil.rmtree(out)


def test_inputs_of_notebook_08_that_do_not_exist_are_named(small_study, project):
    values = {"study": "config/paper.yaml", "settings": [*SMALL], "inputs": ["nowhere"]}
    with pytest.raises(ParameterError, match="08_predict: the parameter 'inputs' has 'nowhere', but there is no such"):
        check_parameters("08_predict", values)
