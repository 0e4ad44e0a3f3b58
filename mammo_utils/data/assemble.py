"""From headers and labels to a cohort: the exclusions that all data sets share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mammo_utils.data.cohort import EXCLUDED, STEPS, USED, Cohort, DataError, check, exam_table, table
from mammo_utils.data.exclusions import apply_rule, exclusion_rows
from mammo_utils.data.kinds import OTHER_STUDY, choose_study, explain_preference, preference
from mammo_utils.data.label_tables import NO_ROW, UNLABELLED, Labels
from mammo_utils.io import display_path

SECOND = "a second image of the same view"
COPY = "the same UID as another file"


def assemble(
    name: str,
    folder: Path,
    headers: list[dict],
    labels: Labels,
    excluded: list[dict],
    *,
    rule: str,
    lesions: list[dict] | None = None,
    ages: dict[str, float] | None = None,
    notes: dict[tuple[str, str], str] | None = None,
    corrections: list[dict] | None = None,
) -> Cohort:
    """Assemble the cohort of a data folder.

    Args:
        name: Name of the data set.
        folder: The data folder.
        headers: Headers from `mammo_utils.data.dicom.read_headers`, with the exam in `patient`.
        labels: Labels by (exam, side).
        excluded: Rows of the table excluded, for everything that is unusable apart from images and breasts.
        rule: The exams to keep, "usable", "annotated" or "complete".
        lesions: Rows of the table lesions; None if the data set has no outlines.
        ages: Age of each exam, in years.
        notes: Notes on contradicting labels by (exam, side).
        corrections: Rows of the table corrections.

    Raises:
        DataError: There are no headers, or the rule is "annotated" and the data set has no outlines.
    """
    if not headers:
        files = [f" {row['what']}: {row['reason']}." for row in excluded if row["kind"] == "file"]
        raise DataError(f"{display_path(folder)} holds no readable DICOM file; put {name} there.{''.join(files[:1])}")
    if rule == "annotated" and lesions is None:
        raise DataError(f"{name} has no lesion outlines, so its cohort cannot be 'annotated'; choose usable.")
    images = table("images", _make_image_rows(headers, labels))
    breasts = table("breasts", _make_breast_rows(labels, images.to_dict("records"), notes or {}))
    outlined, corrected = table("lesions", lesions or []), table("corrections", corrections or [])
    excluded = excluded + exclusion_rows(images[images["status"] == EXCLUDED], breasts[breasts["status"] == EXCLUDED])
    tables = images, breasts, outlined, table("excluded", excluded), corrected
    exams = exam_table(breasts, images, outlined, ages or {}, name)
    synthetic = any(header["synthetic"] for header in headers)
    cohort = apply_rule(Cohort(name, folder, synthetic, exams, *tables, rule=rule))
    excluded = cohort.excluded.sort_values(["kind", "what", "reason"], ignore_index=True)
    return check(replace(cohort, excluded=excluded))


def reading_order(header: dict) -> tuple:
    """Sort key of headers: of one view the image to be used first, of its copies the largest, a complete one."""
    view = header["patient"], header["side"], header["view"]
    return *view, *preference(header), -header["size"], header["path"]


def _make_image_rows(headers: list[dict], labels: Labels) -> list[dict]:
    """Rows of the table images, in reading order, each used or excluded with its step and reason."""
    rows, first_files = [], {}
    for header in sorted(headers, key=reading_order):
        exam, side = header["patient"], header["side"]
        view = f"{side}_{header['view']}" if side and header["view"] else ""
        breast = labels.get((exam, side), {"reason": NO_ROW})
        step, reason = "reading", ""
        if header.get("refused"):
            reason = header["refused"]
        elif not view:
            reason = f"no DICOM tag has the {'view' if side else 'side'}"
        elif header.get("damaged"):
            step, reason = "corrections", f"the image is damaged: {header['damaged']}"
        elif header["image"] in first_files:
            other, path = first_files[header["image"]]
            reason = f"{COPY}: {path}" if other == exam else f"the same UID as another patient's file: {other}, {path}"
        elif breast["reason"]:
            step, reason = "labels", breast["reason"]
        else:
            first_files[header["image"]] = exam, header["path"]  # a usable file, so no bad copy displaces a good one
            step = ""
        rows.append({**header, "exam": exam, "view": view, "step": step, "reason": reason})
    _choose_images([row for row in rows if not row["reason"]])
    return [{**row, "status": EXCLUDED if row["reason"] else USED} for row in rows]


def _choose_images(rows: list[dict]) -> None:
    """Of usable images in reading order, keep one per view of one study per exam; the others get step and reason."""
    images_by_exam: dict[str, list[dict]] = {}
    for row in rows:
        images_by_exam.setdefault(row["exam"], []).append(row)
    studies = {exam: choose_study(images) for exam, images in images_by_exam.items()}
    views: dict[tuple[str, str], dict] = {}
    for row in rows:
        if row["study"] != studies[row["exam"]]:
            row |= {"step": "cohort", "reason": OTHER_STUDY}
        elif (used := views.setdefault((row["exam"], row["view"]), row)) is not row:
            why = explain_preference(used, row)
            row |= {"step": "reading", "reason": f"{SECOND}: beside {used['path']}, because {why}"}


def _make_breast_rows(labels: Labels, images: list[dict], notes: dict[tuple[str, str], str]) -> list[dict]:
    """Rows of the table breasts: every breast that has a label or an image."""
    with_image = {(row["exam"], row["side"]) for row in images if row["status"] == USED}
    steps: dict[tuple[str, str], list[str]] = {}
    for row in images:
        if row["side"]:
            steps.setdefault((row["exam"], row["side"]), []).append(row["step"])
    rows = []
    for key in sorted(set(labels) | set(steps)):
        label = labels.get(key, UNLABELLED | {"reason": NO_ROW})
        step, reason = "", ""
        if key not in steps:
            step, reason = "reading", "the folder has no image of it"
        elif label["reason"]:
            step, reason = "labels", label["reason"]
        elif key not in with_image:
            step, reason = max(steps[key], key=STEPS.index), "none of its images can be used"
        status = {"status": EXCLUDED if reason else USED, "step": step, "reason": reason}
        rows.append({"exam": key[0], "side": key[1], **label, **status, "note": notes.get(key, "")})
    return rows
