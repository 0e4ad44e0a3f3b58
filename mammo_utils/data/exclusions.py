"""Exclusions: every image and breast is used or excluded, at one step for one reason, and the sums agree."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pandas as pd

from mammo_utils.data.cohort import EXCLUDED, STEPS, USED, Cohort, check, exam_table, table
from mammo_utils.data.kinds import NO_STUDY, OTHER_STUDY
from mammo_utils.data.split import find_duplicates, patient_groups, select_subset
from mammo_utils.vocabulary import SIDES, VIEWS

UNITS = ("images", "breasts", "exams")
RULES = {  # which exams a study keeps -> the reason for excluding the others
    "usable": "",
    "annotated": "no lesion is outlined (annotated)",
    "complete": "not all four views are there (complete)",
}


def exclusion_flow(cohort: Cohort, subset: str = "", rule: str = "exams") -> pd.DataFrame:
    """Count what was found and what each step excluded, as a CONSORT diagram does.

    Args:
        cohort: The cohort.
        subset: One of SUBSETS to add what a run of that subset leaves out, "" for none.
        rule: How the subset selects, see `data.split.select_subset`.

    Returns:
        One row per step and reason, in their order, after a first row of step "found". Columns: `step`, `reason`
        (without its details), `images`, `breasts`, `exams` (number excluded; first row: total found), `images_left`,
        `breasts_left`, `exams_left`. An unreadable DICOM file counts as an image.
    """
    if subset:
        others = cohort.exams.index.difference(select_subset(cohort.exams, subset, rule).index)
        cohort = exclude_exams(cohort, dict.fromkeys(others, f"no breast of the exam is in {subset}"), "subset")
    files = cohort.excluded[cohort.excluded["kind"] == "file"]
    files = pd.DataFrame({"exam": "", "status": EXCLUDED, "step": "reading", "reason": files["reason"]})
    images, breasts = (frame[list(files.columns)] for frame in (cohort.images, cohort.breasts))
    # An exam leaves at the step at which the last of its images and breasts leaves.
    exams = pd.concat([images, breasts]).query("exam != ''")
    exams = exams.sort_values("step", key=lambda step: step.map(["", *STEPS].index), kind="stable")
    exams = exams.drop_duplicates("exam", keep="last")
    exams["status"] = exams["exam"].isin(cohort.exams.index).map({True: USED, False: EXCLUDED})
    units = pd.concat([files, images, breasts, exams], keys=["images", *UNITS], names=["unit"]).reset_index("unit")
    excluded = units[units["status"] == EXCLUDED]
    rows = pd.crosstab([excluded["step"], excluded["reason"].str.split(": ").str[0]], excluded["unit"])
    rows = rows.reindex(columns=UNITS, fill_value=0).rename_axis(columns=None).reset_index()
    rows = rows.sort_values(
        ["step", *UNITS, "reason"],
        ascending=[True, False, False, False, True],
        key=lambda column: column.map(STEPS.index) if column.name == "step" else column,
    )
    found = units["unit"].value_counts().reindex(UNITS, fill_value=0)
    rows = pd.concat([pd.DataFrame([{"step": "found", "reason": "", **found}]), rows], ignore_index=True)
    for name in UNITS:
        rows[f"{name}_left"] = 2 * found[name] - rows[name].cumsum()  # the sum starts with what was found
    return rows


def contradictions(cohort: Cohort) -> pd.DataFrame:
    """List images whose tags and breasts whose labels contradict each other, used or not: `kind`, `what`, `note`."""
    images, breasts = (frame[frame["note"] != ""] for frame in (cohort.images, cohort.breasts))
    return pd.DataFrame(exclusion_rows(images, breasts, "note"), columns=["kind", "what", "note"])


def exclusion_rows(images: pd.DataFrame, breasts: pd.DataFrame, column: str = "reason") -> list[dict]:
    """List images and breasts as rows of the table `excluded`.

    Args:
        images: Rows of the table images.
        breasts: Rows of the table breasts.
        column: The text column that accompanies `kind` and `what`.
    """
    units = (("image", images["path"], images[column]), ("breast", _breast_names(breasts), breasts[column]))
    return [
        {"kind": kind, "what": what, column: text}
        for kind, names, texts in units
        for what, text in zip(names, texts, strict=True)
    ]


def exclude_images(cohort: Cohort, reasons: dict[str, str], replacements: Collection[str] = ()) -> Cohort:
    """Exclude images by their pixels, breasts without other images, and exams that then break the cohort's rule.

    Args:
        cohort: The cohort.
        reasons: Path of an image -> why it is excluded.
        replacements: Paths of images that were excluded on reading because another image shows the same view, and
            that now take its place.
    """
    images, breasts, excluded = cohort.images.copy(), cohort.breasts.copy(), cohort.excluded
    lost = _exclude(images, images["path"], reasons, "pixels")
    used = images["path"].isin(replacements) & (images["status"] == EXCLUDED) & (images["step"] == "reading")
    images.loc[used, ["status", "step", "reason"]] = USED, "", ""
    excluded = excluded[(excluded["kind"] != "image") | ~excluded["what"].isin(images.loc[used, "path"])]
    names = _breast_names(breasts)
    without_image = set(names) - set(_breast_names(images[images["status"] == USED]))
    bare = _exclude(breasts, names, dict.fromkeys(without_image, "none of its images can be used"), "pixels")
    # An older study takes no part in this: labels may belong to the study that was chosen.
    left = images["exam"].isin(images.loc[images["status"] == USED, "exam"])
    other = (images["reason"] == OTHER_STUDY) & ~left & images["exam"].isin(images.loc[lost, "exam"])
    images.loc[other, "reason"] = NO_STUDY
    excluded.loc[excluded["what"].isin(images.loc[other, "path"]) & (excluded["kind"] == "image"), "reason"] = NO_STUDY
    rows = exclusion_rows(images[lost], breasts[bare])
    return apply_rule(_update(replace(cohort, excluded=excluded), images, breasts, rows), "pixels")


def exclude_exams(cohort: Cohort, reasons: dict[str, str], step: str) -> Cohort:
    """Exclude exams with their images and breasts.

    Args:
        cohort: The cohort.
        reasons: Exam -> why it is excluded.
        step: One of STEPS.
    """
    images, breasts = cohort.images.copy(), cohort.breasts.copy()
    for frame in (images, breasts):
        _exclude(frame, frame["exam"], reasons, step)
    rows = [{"kind": "exam", "what": exam, "reason": reason} for exam, reason in sorted(reasons.items())]
    return _update(cohort, images, breasts, rows)


def apply_rule(cohort: Cohort, step: str = "cohort") -> Cohort:
    """Exclude the exams that the cohort's rule does not keep. Raises ValueError for an unknown rule.

    "usable" keeps every exam, "annotated" those with an outlined lesion, "complete" those with all four views.
    """
    if cohort.rule not in RULES:
        raise ValueError(f"There is no cohort {cohort.rule!r}; accepted are {', '.join(RULES)}.")
    exams = cohort.exams
    kept = {
        "usable": pd.Series(True, exams.index),
        "annotated": exams[[f"{side}_lesions" for side in SIDES]].sum(axis=1) > 0,
        "complete": exams[list(VIEWS)].all(axis=1),
    }[cohort.rule]
    reasons = dict.fromkeys(exams.index[~kept], RULES[cohort.rule])
    return exclude_exams(cohort, reasons, step) if reasons else cohort


def exclude_conflicting_duplicates(cohort: Cohort, hashes: pd.DataFrame, conflicts: str = "exclude") -> Cohort:
    """Exclude groups of patients who share an image under different labels, unless `conflicts` is "keep".

    Args:
        cohort: The cohort.
        hashes: `exam`, `view` and `sha256` of every image, used or not, see `Store.hashes`.
        conflicts: "exclude" or "keep".
    """
    shared, groups = find_duplicates(cohort, hashes), patient_groups(cohort, hashes)
    out = groups.index[groups.isin(groups[shared.loc[shared["conflicting"], "exam"]])]
    if conflicts == "keep" or out.empty:
        return cohort
    pairs = shared.merge(shared, on="sha256", suffixes=("", "_other")).query("exam != exam_other")
    others = pairs.groupby("exam")["exam_other"].agg(lambda names: ": " + ", ".join(sorted(set(names))))
    # An exam that is joined to the others through an unused image has no duplicate to name.
    reason = "another patient has the same pixels with a different label"
    return exclude_exams(cohort, {exam: reason + others.get(exam, "") for exam in out}, "duplicates")


def _breast_names(rows: pd.DataFrame) -> pd.Series:
    return rows["exam"] + " " + rows["side"]


def _exclude(frame: pd.DataFrame, keys: pd.Series, reasons: dict[str, str], step: str) -> pd.Series:
    """Exclude, in place, the used rows whose key has a reason, and return which they are."""
    rows = (frame["status"] == USED) & keys.isin(reasons)
    frame.loc[rows, "reason"] = keys[rows].map(reasons)
    frame.loc[rows, ["status", "step"]] = EXCLUDED, step
    return rows


def _update(cohort: Cohort, images: pd.DataFrame, breasts: pd.DataFrame, rows: list[dict]) -> Cohort:
    """Replace the tables of images and breasts, derive the exam table from them and add rows to `excluded`."""
    exams = exam_table(breasts, images, cohort.lesions, cohort.exams["age"].to_dict(), cohort.name)
    excluded = pd.concat([cohort.excluded, table("excluded", rows)], ignore_index=True)
    return check(replace(cohort, exams=exams, images=images, breasts=breasts, excluded=excluded))
