"""The study's page counts the final cohort."""

import shutil

from mammo_utils.data.cohort import load_cohort, save_cohort
from mammo_utils.data.exclusions import exclude_images
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.tables import results_table
from mammo_utils.io import write_json
from mammo_utils.workflow.index_page import index_body
from mammo_utils.workflow.pictures import Pictures
from mammo_utils.workflow.report import print_claims


def page_of_study(study):
    runs = read_runs(study)
    return index_body(study, [], runs, results_table(runs, study), Pictures(study.folder))


CLAIMS = {"a": True, "b": False, "c": None}
CHECK = {"claim": "a", "holds": True, "count": "", "exceptions": ""}


def test_the_page_shows_the_exclusions_of_notebook_02(small_study, in_small_project):
    final = small_study.folder / "cohort"
    cohort = load_cohort(final)
    path = cohort.images.loc[cohort.images["status"] == "used", "path"].iloc[0]
    used = (cohort.images["status"] == "used").sum()
    assert f"{used} images used" in page_of_study(small_study)
    shutil.copytree(final, final.with_name("kept"))
    try:
        save_cohort(exclude_images(cohort, {path: "every pixel is 0"}), final)
        page = page_of_study(small_study)
    finally:
        shutil.rmtree(final)
        final.with_name("kept").rename(final)
    assert f"{used - 1} images used" in page and "every pixel is 0" in page


def test_the_page_has_the_sentences_of_notebooks_05_and_07(small_study, in_small_project):
    for name, sentence in (("results", "0 of 5 comparisons are told apart."), ("decisions", "7 of 90 subgroups")):
        write_json(small_study.folder / f"{name}.json", {"checks": [CHECK], "summary": [sentence]})
    try:
        page = page_of_study(small_study)
    finally:
        for name in ("results", "decisions"):
            (small_study.folder / f"{name}.json").unlink()
    assert "<li>0 of 5 comparisons are told apart.</li><li>7 of 90 subgroups</li>" in page


def test_a_claim_that_cannot_be_decided_is_not_called_wrong(small_study, in_small_project, capsys):
    checks = [CHECK | {"claim": name, "holds": holds} for name, holds in CLAIMS.items()]
    write_json(small_study.folder / "results.json", {"checks": checks})
    try:
        assert print_claims(small_study) == 1
    finally:
        (small_study.folder / "results.json").unlink()
    assert capsys.readouterr().out.splitlines() == ["holds: a", "DOES NOT HOLD: b", "cannot be decided: c"]


def test_a_finding_is_printed_beside_the_claims_and_fails_nothing(reported_study, capsys):
    write_json(reported_study.folder / "results.json", {"checks": [CHECK]})
    for finding in ("one of two cancers is missed", "it cannot be said whether both of two cancers are flagged"):
        write_json(reported_study.folder / "views.json", {"findings": [{"finding": finding}]})
        assert print_claims(reported_study) == 0
        assert capsys.readouterr().out.splitlines() == ["holds: a", f"found: {finding}"]
