"""From headers and labels to a cohort: the rules of fates that every data set shares.

A reader brings headers (:func:`mammo_utils.data.dicom.read_headers`, the exam in `patient`) and labels, (exam, side)
-> {class, diagnosis, birads, density, reason}; a reason other than "" sets the breast aside.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mammo_utils.data.cohort import EXCLUDED, STEPS, USED, Cohort, DataError, check, exam_table, table
from mammo_utils.data.exclusions import apply_rule, exclusion_rows

SECOND = "a second image of the same view"
COPY = "the same UID as another file"
NO_ROW = "the labels have no row for its breast"
UNLABELLED = {"class": "", "diagnosis": -1, "birads": -1, "density": "", "reason": ""}


def assemble(
    name: str,
    folder: Path,
    headers: list[dict],
    labels: dict,
    excluded: list[dict],
    lesions: list[dict] | tuple = (),
    rule: str = "usable",
) -> Cohort:
    """The cohort of a data set without known errors; excluded: what its reader could not use, other than images.

    Raises DataError for the rule "annotated" where the reader has no outlines.
    """
    if rule == "annotated" and not lesions:
        raise DataError(f"{name} has no lesion outlines here, so its cohort cannot be 'annotated'; choose usable.")
    whole = {"damaged": "", "mirrored": False}
    images = table("images", image_rows([whole | header for header in headers], labels))
    breasts = table("breasts", breast_rows(labels, images.to_dict("records"), {}))
    aside = excluded + exclusion_rows(images[images["status"] == EXCLUDED], breasts[breasts["status"] == EXCLUDED])
    outlined = table("lesions", list(lesions))
    exams = exam_table(breasts, images, outlined, {}, name)
    synthetic = any(header["synthetic"] for header in headers)
    found = Cohort(name, folder, synthetic, exams, images, breasts, outlined, table("excluded", aside), rule=rule)
    found = apply_rule(found)
    rest = found.excluded.sort_values(["kind", "what", "reason"], ignore_index=True)
    return check(replace(found, excluded=rest))


def image_rows(headers: list[dict], labels: dict) -> list[dict]:
    """Rows of the table images, ordered by exam, view and UID, each used or set aside with its step and reason.

    A header may bring its own reason as `refused`. Only a file that can be used counts as the first of its UID: a good
    copy beside a bad one is not lost.
    """
    rows, uids, views = [], {}, {}
    for header in sorted(headers, key=_order):
        exam, side = header["patient"], header["side"]
        view = f"{side}_{header['view']}" if side and header["view"] else ""
        breast = labels.get((exam, side))
        step, reason = "reading", ""
        if header.get("refused"):
            reason = header["refused"]
        elif not side or not header["view"]:
            reason = f"no DICOM tag says the {'view' if side else 'side'}"
        elif header["damaged"]:
            step, reason = "corrections", f"the image is damaged: {header['damaged']}"
        elif header["image"] in uids:
            other, path = uids[header["image"]]
            reason = f"{COPY}: {path}" if other == exam else f"the same UID as another patient's file: {other}, {path}"
        elif breast is None:
            step, reason = "labels", NO_ROW
        elif breast["reason"]:
            step, reason = "labels", breast["reason"]
        else:
            uids[header["image"]] = exam, header["path"]
            if (exam, view) in views:
                reason = f"{SECOND}: beside {views[exam, view]}"
            else:
                step, views[exam, view] = "", header["path"]
        fate = {"status": EXCLUDED if reason else USED, "step": step, "reason": reason}
        rows.append({**header, "exam": exam, "view": view, **fate})
    return rows


def _order(header: dict) -> tuple:
    """By what the files say, so that their names and order decide nothing; of copies the largest is the whole one."""
    return header["patient"], header["side"], header["view"], header["image"], -header["size"], header["path"]


def breast_rows(labels: dict, images: list[dict], notes: dict) -> list[dict]:
    """Rows of the table breasts: every breast of the labels and of the images."""
    there = {(row["exam"], row["side"]) for row in images if row["status"] == USED}
    found: dict[tuple[str, str], list[dict]] = {}
    for row in images:
        if row["side"]:
            found.setdefault((row["exam"], row["side"]), []).append(row)
    nothing = {"class": "", "diagnosis": -1, "birads": -1, "density": "", "reason": NO_ROW}
    rows = []
    for exam, side in sorted(set(labels) | set(found)):
        label = labels.get((exam, side), nothing)
        step, reason = "", ""
        if (exam, side) not in found:
            step, reason = "reading", "the folder has no image of it"
        elif label["reason"]:
            step, reason = "labels", label["reason"]
        elif (exam, side) not in there:
            step = max((row["step"] for row in found[exam, side]), key=STEPS.index)
            reason = "none of its images can be used"
        fate = {"status": EXCLUDED if reason else USED, "step": step, "reason": reason}
        rows.append({"exam": exam, "side": side, **label, **fate, "note": notes.get((exam, side), "")})
    return rows
