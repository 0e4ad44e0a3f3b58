"""Two studies on one page: what differs, and a test only where both have the same patients."""

import shutil

import pytest
from bs4 import BeautifulSoup

from mammo_utils.plots.save import save_figure
from mammo_utils.workflow.compare_studies import read_folder, write_comparison
from tests.evaluation.fakes import write_run
from tests.links import wrong_links
from tests.workflow.test_pages import figure


def compared(study, other):
    page = write_comparison(study, str(other))
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    return {
        h2["id"]: [e for e in h2.find_all_next(["p", "table", "img"]) if e.find_previous("h2") is h2]
        for h2 in soup("h2")
    }


def cells(table):
    return [[cell.text for cell in row(["th", "td"])] for row in table.select("tr")]


@pytest.fixture
def other(reported_study, tmp_path):
    """A study of two systems, one of them the same, with other epochs, answers and data."""
    training = reported_study.training.model_copy(update={"epochs": 7})
    study = reported_study.model_copy(update={"name": "second", "training": training})
    for system in ("hybrid_shared", "resnet50"):
        write_run(study.run(system, "multi", "1v5", 0), strength=0.1, data_hash="e")
    for folder in (reported_study.folder, study.folder):
        save_figure(figure(3), "systems-1v5", folder / "figures", notebook="05_results", synthetic=True)
    return study


def test_settings_data_and_paired_results_stand_side_by_side(reported_study, other):
    found = compared(reported_study, other.folder)
    settings, (results,) = cells(found["settings"][0]), [e for e in found["results"] if e.name == "table"]
    assert settings[0] == ["setting", "small", "second"] and ["training.epochs", "1", "7"] in settings
    assert ["runs that the other lacks", "resnet18-multi-1v5-seed0", "resnet50-multi-1v5-seed0"] in settings
    assert len(settings) == 3 and "their hashes differ" in found["data"][0].text
    rows = cells(results)
    assert [row[0] for row in rows[1:]] == ["Hybrid ResNet-VSSM (Shared)"] * 4
    here, there = (float(text.split()[0]) for text in rows[1][4:6])
    assert float(rows[1][6]) == pytest.approx(there - here, abs=0.002) and float(rows[1][8]) < 0.05
    assert len([e for e in found["pictures"] if e.name == "img"]) == 2
    html = reported_study.folder / "html"
    shutil.copy(html / "compare-second.html", html / "index.html")
    assert wrong_links(html) == []


def test_other_patients_have_values_but_no_test(reported_study, other):
    drawn = reported_study.data.synthetic.model_copy(update={"seed": 4})
    away = other.model_copy(update={"data": reported_study.data.model_copy(update={"synthetic": drawn})})
    shutil.rmtree(other.folder)
    write_run(away.run("hybrid_shared", "multi", "1v5", 0))
    (table,) = [e for e in compared(reported_study, away.folder)["results"] if e.name == "table"]
    assert "Difference" not in cells(table)[0] and "[" in cells(table)[1][5]


def test_the_same_study_differs_in_nothing(reported_study):
    found = compared(reported_study, reported_study.folder)
    assert not found["settings"] and "hashes of the data are equal" in found["data"][0].text


def test_a_folder_without_a_finished_run_is_named(reported_study, other, tmp_path):
    with pytest.raises(ValueError, match="nothing holds no finished run"):
        read_folder(tmp_path / "nothing")
    config = other.folder / "runs" / "resnet50-multi-1v5-seed0" / "config.json"
    config.write_text('{"system": "unknown"}')
    with pytest.raises(ValueError, match="resnet50-multi-1v5-seed0 has settings of another version"):
        read_folder(other.folder)
