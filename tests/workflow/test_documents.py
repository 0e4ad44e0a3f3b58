"""The model card and the CLAIM table have the study's own numbers, and what is missing is not done."""

import json
import re

import numpy as np
import pytest

from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.tables import results_table
from mammo_utils.io import write_json, write_text
from mammo_utils.workflow.documents import ITEMS, claim_page, claim_table, collect_evidence, describe_parts, model_card
from tests.conftest import CHECKOUT


def evidence(study):
    runs = read_runs(study)
    return collect_evidence(study, runs, results_table(runs, study))


def test_each_of_the_44_items_names_a_place_that_exists():
    assert ITEMS["item"].tolist() == list(range(1, 45)) and not ITEMS["name"].duplicated().any()
    for place in ITEMS["place"]:
        name, _, heading = place.partition("#")
        if file := next((CHECKOUT / "notebooks").glob(f"{name}.ipynb"), None) if name else None:
            cells = json.loads(file.read_text("utf-8"))["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
            assert heading in re.findall("(?m)^#+ (.+)$", text), place
        elif name.startswith("docs/"):
            assert heading in re.findall("(?m)^#+ (.+)$", (CHECKOUT / f"{name}.md").read_text("utf-8")), place
        else:
            assert name in ("", "README", "index.html", "certificate.json", "model_card"), place
    assert (ITEMS.loc[ITEMS["place"] == "", "absent"] != "").all(), "what is never done has a reason"


def test_an_item_is_done_only_if_its_page_and_its_value_exist(reported_study):
    answers = claim_table(evidence(reported_study)).set_index("item")["answer"]
    assert len(answers) == 44 and answers[1].startswith("deep learning: ResNet-18")
    assert answers[38] == answers[29] == "not done: this study has no such result"
    for name in ("05_results", "07_decisions"):
        write_text(reported_study.folder / "html" / f"{name}.html", "")
    write_json(reported_study.folder / "results.json", {"comparisons": [{"p_holm": 0.5}, {"p_holm": None}]})
    rates = [{"sensitivity": 0.7}, {"sensitivity": 0.8}, {"sensitivity": None}]
    write_json(reported_study.folder / "decisions.json", {"operating_points": rates, "plan": [], "failures": []})
    table = claim_table(evidence(reported_study)).set_index("item")
    assert table.at[29, "answer"] == "2 comparisons with intervals, corrected for their number"
    assert table.at[38, "answer"] == "3 operating points, with Wilson's intervals"
    assert "(html/07_decisions.html#Operating-points)" in table.at[38, "where"]
    assert table.at[39, "answer"].startswith("not done") and table.at[33, "answer"].startswith("not done")
    done = (~table["answer"].str.startswith("not done")).sum()
    page = claim_page(evidence(reported_study))
    assert f"{done} of 44 items are answered" in page and "**Synthetic cohort.**" in page


def test_a_changed_number_changes_both_documents(reported_study):
    write_text(reported_study.folder / "html" / "05_results.html", "")
    e = evidence(reported_study)
    auc = e.results["metric"] == "auc"
    low, high = e.results.loc[auc, "value"].min(), e.results.loc[auc, "value"].max()
    assert f"4 AUCs of {low:.3f} to {high:.3f}, 4 with an interval" in claim_page(e)
    row = e.results[auc].iloc[0]
    cell = f"ResNet-18, both tasks, BI-RADS 1 vs 5 | Diagnosis | {row['value']:.3f} ({row['low']:.3f} to "
    counts = f" | test | {row['n_seeds']} | {row['n_patients']} | {row['n_by_class']} |"
    (line,) = [line for line in model_card(e).splitlines() if cell in line]
    assert line.endswith(counts), line
    e.results.loc[auc, "value"] = 0.123
    assert "4 AUCs of 0.123, 4 with an interval" in claim_page(e) and f"0.123 ({row['low']:.3f}" in model_card(e)
    e.results.loc[auc, ["low", "high"]] = np.nan
    assert "4 AUCs of 0.123, 0 with an interval" in claim_page(e) and "0.123 (no interval)" in model_card(e)


def test_a_damaged_split_does_not_take_the_report_down(reported_study):
    path = reported_study.folder / "split.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert claim_table(evidence(reported_study)).set_index("item").at[19, "answer"].startswith("not done")


def test_the_card_states_the_finding_about_the_gate_and_no_device(reported_study):
    sentence = "In exams with two cancers, 6 of 6 runs flag both breasts less often than not."
    assert "not measured from which views" in model_card(evidence(reported_study))
    write_json(reported_study.folder / "views.json", {"statements": [sentence]})
    card = model_card(evidence(reported_study))
    assert f"- {sentence}" in card and "**Not a medical device.**" in card and "**Synthetic cohort.**" in card


def test_the_parts_are_described_by_exams_patients_and_labels(reported_study):
    e = evidence(reported_study)
    table = describe_parts(e.cohort, e.part, e.groups)
    assert table.loc["exams"].sum() == len(e.part) and list(table) == ["train", "validation", "test"]
    malignant = sum((e.cohort.exams.loc[e.part.index, f"{side}_class"] == "malignant").sum() for side in "LR")
    assert table.loc["breasts, class malignant"].sum() == malignant > 0
    e.cohort.exams["age"] = np.nan
    assert (describe_parts(e.cohort, e.part, e.groups).loc["age: median (range)"] == "unknown").all()


@pytest.mark.parametrize("gone", [(), ("runs", "cohort", "split.json", "prepared.json")])
def test_both_are_written_whatever_has_finished(reported_study, gone):
    for name in gone:
        path = reported_study.folder / name
        path.rename(path.with_name(f"{name}.gone"))
    e = evidence(reported_study)
    assert model_card(e).count("Nothing has been computed yet.") == (3 if gone else 0)
    assert claim_page(e).count("\n| ") == 46
