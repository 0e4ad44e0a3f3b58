"""Notebook 02 in a data folder whose first images are damaged."""

import json
import shutil

import matplotlib.pyplot as plt

from mammo_utils.data.cohort import load_cohort, save_cohort
from mammo_utils.data.sources import read_cohort
from mammo_utils.prepared import save_found
from mammo_utils.study import load_study
from mammo_utils.synthetic.release import write_release
from tests.conftest import CHECKOUT, SMALL


def run_notebook(name, **parameters):
    """Execute the code cells one after the other; return their names."""
    names = {}
    for cell in json.loads((CHECKOUT / "notebooks" / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
        if cell["metadata"].get("tags") == ["parameters"]:
            names |= parameters
    plt.close("all")
    return names


def test_damaged_images_do_not_stop_notebook_02_and_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    for name in ("config", "notebooks"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    settings = [*SMALL, "data.synthetic={n_exams: 28, rows: 64, columns: 56, seed: 3}", "real_exams=false"]
    study = load_study("config/paper.yaml", settings)
    write_release(study.data_folder, **study.data.synthetic.model_dump(), workers=1)
    cohort = read_cohort("cmmd", study.data_folder)
    save_cohort(cohort, study.folder / "found")
    save_found(study)
    used = cohort.images[cohort.images["status"] == "used"]
    outlined = cohort.lesions.merge(used, on=["exam", "view", "side"])["path"]
    damaged, gone = {used.loc[used["side"] == "R", "path"].iloc[0], outlined.iloc[0]}, used["path"].iloc[-1]
    assert len(damaged) == 2
    for path in damaged:
        file = cohort.folder / path
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (cohort.folder / gone).unlink()
    names = run_notebook("02_preprocessing", study="config/paper.yaml", settings=settings)
    printed = capsys.readouterr().out
    assert all(f"not shown: {path}: its pixels cannot be decoded" in printed for path in damaged)
    assert names["row"]["path"] not in damaged and names["lesion"]["path"] not in damaged
    assert set(names["store"].excluded["path"]) == damaged | {gone}
    reasons = load_cohort(study.folder / "cohort").excluded.set_index("what")["reason"]
    assert all("download the file again" in reasons[path] for path in damaged) and "no longer there" in reasons[gone]
