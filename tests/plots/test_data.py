"""Figures of the data show the numbers of their tables; thumbnails are made of what can be decoded."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mammo_utils.data.exclusions import exclusion_flow
from mammo_utils.data.sources import read_cohort
from mammo_utils.plots.data import (
    draw_distributions,
    draw_exam,
    draw_flow,
    draw_leakage,
    sample_excluded,
    sample_structures,
)
from mammo_utils.plots.save import save_figure
from mammo_utils.synthetic.cases import Settings
from mammo_utils.vocabulary import VIEWS
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


def test_distributions_count_breasts_and_exams():
    exams = pd.DataFrame(
        [
            [True, True, True, True, "normal", 1, "fatty", "malignant", 5, "extreme"],
            [True, True, False, False, "normal", 2, "fatty", "", -1, ""],
        ],
        columns=[*VIEWS, *(f"{side}_{name}" for side in "LR" for name in ("class", "birads", "density"))],
    )
    figure = draw_distributions(exams, "two exams")
    heights = [[[bar.get_height() for bar in bars] for bars in axis.containers] for axis in figure.axes]
    assert heights[0] == [[2, 0, 0], [0, 0, 1]], "sides L and R by class"
    assert heights[1] == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], "classes by BI-RADS"
    assert heights[2:] == [[[2, 1]], [[1, 1]]], "densities and views present, without zeros"
    assert [label.get_text() for label in figure.axes[3].get_xticklabels()] == ["2", "4"]
    plt.close(figure)
    unlabelled = exams.assign(L_class="", R_class="", L_birads=-1, R_birads=-1, L_density="", R_density="")
    plt.close(draw_distributions(unlabelled, "no label"))


def test_leakage_shows_every_repeat_and_the_mean_and_is_drawn_the_same_twice(tmp_path):
    rows = [("by image", "coin", 0.75), ("by image", "coin", 0.65), ("by patient", "coin", 0.5)]
    table = pd.DataFrame(rows, columns=["split", "label", "auc"])
    paths = []
    for name in "ab":
        figure = draw_leakage(table, "made up")
        paths.append(save_figure(figure, name, tmp_path, notebook="02_preprocessing", synthetic=False))
        (axis,) = figure.axes
        points = [sorted(swarm.get_offsets()[:, 1]) for swarm in axis.collections if len(swarm.get_offsets())]
        assert [[0.65, 0.75], [0.5]] == points[:2]
        assert [text.get_text() for text in axis.texts] == ["0.70", "0.50"]
        plt.close(figure)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_exam_shows_its_labels_and_outlines_and_marks_absent_views():
    outline = np.array([[1.0, 1], [5, 2], [3, 6]])
    image = np.linspace(0, 1, 80).reshape(8, 10)
    figure = draw_exam(
        {"R_CC": image, "L_CC": image, "L_MLO": image}, "x", {"L": "benign"}, {"L_MLO": [("mass", outline)]}
    )
    assert [axis.get_title() for axis in figure.axes] == ["R-CC", "benign\nL-CC", "R-MLO", "L-MLO"]
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [[], [], ["absent"], ["mass"]]
    np.testing.assert_array_equal(figure.axes[3].patches[0].get_xy()[:3], outline)
    plt.close(figure)


def test_structures_of_a_cancer_and_of_a_healthy_breast_are_shown_faint_as_in_the_cohort():
    captions, pictures = sample_structures(Settings(rows=144, columns=120, difficulty=0.7))
    assert pictures.shape == (6, 36, 36) and pictures.dtype == np.uint8
    assert [text.split("\n")[1] for text in captions] == ["contrast 1", "contrast 1", "contrast 0.3"] * 2
    assert [text.split(",")[0] for text in captions] == ["cancer"] * 3 + ["no cancer"] * 3
    differences = np.abs(pictures[:3].astype(int) - pictures[3:]).mean(axis=(1, 2))  # only the strands differ
    assert 0 < 2 * differences[2] < differences[0]
    _, hidden = sample_structures(Settings(rows=144, columns=120, difficulty=1.0))
    assert (hidden[2] == hidden[5]).all(), "without contrast the two breasts are the same"
