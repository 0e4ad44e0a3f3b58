"""The flow diagram shows the numbers of its table; thumbnails are made of what can be decoded."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from mammo_utils.data.exclusions import exclusion_flow
from mammo_utils.data.sources import read_cohort
from mammo_utils.plots.data import draw_flow, sample_excluded
from tests.release_builder import BREASTS, write_dicom, write_workbook


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    write_workbook(folder / "TOMPEI-CMMD_clinical_data_v01.xlsx")
    for number, (exam, side) in enumerate(dict.fromkeys((row[0], row[1]) for row in BREASTS)):
        for view in ("CC", "MLO"):
            write_dicom(folder / f"{number}-{view}.dcm", exam, side, view, 2 * number + (view == "CC"))
    write_dicom(folder / "more.dcm", "D9-9999", "L", "CC", 99)  # a patient who is not in the workbook
    return read_cohort("cmmd", folder)


def test_the_diagram_shows_every_number_of_the_table(cohort):
    rows = exclusion_flow(cohort)
    assert len(rows) > 1
    figure = draw_flow(rows, "a title")
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    for row in rows.iloc[1:].to_dict("records"):
        assert " ".join(row["reason"].split()[:3]) in " ".join(texts.split())
    last = rows.iloc[-1]
    assert f"{rows.at[0, 'images']} images" in texts and f"{last['images_left']} images" in texts
    boxes = [text for text in figure.axes[0].texts if text.get_bbox_patch()]
    assert len(boxes) == 1 + 2 * rows["step"].iloc[1:].nunique()
    plt.close(figure)


def test_thumbnails_cover_each_reason_and_skip_undecodable_images(cohort):
    excluded = cohort.images[cohort.images["status"] == "excluded"]
    found, pictures = sample_excluded(cohort, limit=100, size=8)
    assert len(found) == len(pictures) == len(excluded) and pictures[0].shape == (8, 8)
    reasons = excluded["reason"].str.split(": ").str[0].nunique()
    some, _ = sample_excluded(cohort, limit=reasons, size=8)
    assert some["reason"].str.split(": ").str[0].nunique() == reasons
    gone = cohort.folder / found.iloc[0]["path"]
    kept = gone.read_bytes()
    try:
        gone.write_bytes(kept[:200])
        assert len(sample_excluded(cohort, limit=100, size=8)[0]) == len(excluded) - 1
    finally:
        gone.write_bytes(kept)


def test_a_flow_without_exclusions_is_one_box():
    row = {
        "step": "found",
        "reason": "",
        **{f"{n}{end}": 4 for n in ("images", "breasts", "exams") for end in ("", "_left")},
    }
    figure = draw_flow(pd.DataFrame([row]), "all used")
    assert len(figure.axes[0].texts) == 1
    plt.close(figure)
