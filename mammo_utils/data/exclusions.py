"""What became of every image and every breast: one fate each, decided at one step for one reason, and their sums.

Steps in their order: reading (files, tags, copies), corrections (damaged images), labels, cohort (the rule of the
study), pixels (decoding), twins (the same pixels under two patients with other labels), subset (of a run).
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mammo_utils.data.cohort import EXCLUDED, STEPS, USED, Cohort, check, exam_table, table
from mammo_utils.data.split import find_duplicates, patient_groups, select_subset
from mammo_utils.vocabulary import SIDES, VIEWS

UNITS = ("images", "breasts", "exams")
RULES = {
    "usable": "",
    "annotated": "no lesion is outlined (annotated)",
    "complete": "not all four views are there (complete)",
}


def exclusion_flow(cohort: Cohort, subset: str = "", rule: str = "exams") -> pd.DataFrame:
    """The way from what was found to what is used, as CONSORT draws it.

    One row a step and reason, in their order; the first, step "found", is all that was found. Columns: step,
    reason (without its detail), images, breasts, exams (how many leave here; in the first row how many there
    are), images_left, breasts_left, exams_left. A DICOM file that cannot be read counts as an image. With
    `subset` ("1v5", "1v3v5", "1to5") and its `rule` the last rows are what a run of that subset leaves out.
    """
    images, breasts = cohort.images.copy(), cohort.breasts.copy()
    kept = cohort.exams.index
    if subset:
        kept = select_subset(cohort.exams, subset, rule).index
        for frame in (images, breasts):
            out = (frame["status"] == USED) & ~frame["exam"].isin(kept)
            frame.loc[out, ["status", "step", "reason"]] = EXCLUDED, "subset", f"no breast of the exam is in {subset}"
    files = cohort.excluded[cohort.excluded["kind"] == "file"]
    files = pd.DataFrame({"exam": "", "status": EXCLUDED, "step": "reading", "reason": files["reason"]})
    columns = ["exam", "status", "step", "reason"]
    units = {
        "images": pd.concat([files, images[columns]], ignore_index=True),
        "breasts": breasts[columns],
        "exams": _exam_fates(pd.concat([images[columns], breasts[columns]]), kept),
    }
    counts = {}
    for name, frame in units.items():
        out = frame[frame["status"] == EXCLUDED]
        keys = [out["step"].replace("", "reading"), out["reason"].str.split(": ").str[0]]
        counts[name] = out.groupby(keys).size()
    rows = pd.DataFrame(counts, columns=list(UNITS)).fillna(0).astype(int).rename_axis(["step", "reason"]).reset_index()
    rows["order"] = rows["step"].map(STEPS.index)
    rows = rows.sort_values(["order", *UNITS, "reason"], ascending=[True, False, False, False, True])
    found = pd.DataFrame([{"step": "found", "reason": "", **{name: len(frame) for name, frame in units.items()}}])
    rows = pd.concat([found, rows.drop(columns="order")], ignore_index=True)
    for name in UNITS:
        rows[f"{name}_left"] = 2 * rows.at[0, name] - rows[name].cumsum()
    return rows


def _exam_fates(rows: pd.DataFrame, kept: pd.Index) -> pd.DataFrame:
    """One row an exam: an exam leaves where the last of its images and breasts leaves."""
    rows = rows.assign(order=rows["step"].map({step: number for number, step in enumerate(("", *STEPS))}))
    last = rows.sort_values("order", kind="stable").drop_duplicates("exam", keep="last")
    last = last[last["exam"] != ""]
    last["status"] = last["exam"].isin(kept).map({True: USED, False: EXCLUDED})
    return last[["exam", "status", "step", "reason"]]


def contradictions(cohort: Cohort) -> pd.DataFrame:
    """What contradicts itself, used or not: kind (image: its tags; breast: the tables of labels), what, note."""
    images, breasts = (frame[frame["note"] != ""] for frame in (cohort.images, cohort.breasts))
    rows = [{"kind": "image", "what": row["path"], "note": row["note"]} for row in images.to_dict("records")]
    rows += [
        {"kind": "breast", "what": f"{row['exam']} {row['side']}", "note": row["note"]}
        for row in breasts.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["kind", "what", "note"])


# --- setting aside ----------------------------------------------------------------------------------------


def exclude_images(
    cohort: Cohort, reasons: dict[str, str], step: str = "pixels", instead: frozenset[str] | set[str] = frozenset()
) -> Cohort:
    """The cohort with images (path -> reason) set aside, and with them what they leave without an image.

    `instead` are paths of images that were set aside beside one of these and take its place. An exam that no longer
    fulfils the cohort's rule leaves too.
    """
    images, breasts = cohort.images.copy(), cohort.breasts.copy()
    lost = images["path"].isin(reasons) & (images["status"] == USED)
    images.loc[lost, "reason"] = images.loc[lost, "path"].map(reasons)
    images.loc[lost, ["status", "step"]] = EXCLUDED, step
    taken = images["path"].isin(instead) & (images["status"] == EXCLUDED) & (images["step"] == "reading")
    images.loc[taken, ["status", "step", "reason"]] = USED, "", ""
    no_more = (cohort.excluded["kind"] == "image") & cohort.excluded["what"].isin(set(images.loc[taken, "path"]))
    cohort = replace(cohort, excluded=cohort.excluded[~no_more])
    left = images[images["status"] == USED]
    there = set(zip(left["exam"], left["side"], strict=True))
    bare = breasts["status"] == USED
    bare &= pd.Series([key not in there for key in zip(breasts["exam"], breasts["side"], strict=True)], breasts.index)
    breasts.loc[bare, ["status", "step", "reason"]] = EXCLUDED, step, "none of its images can be used"
    rows = exclusion_rows(images[lost], breasts[bare])
    return apply_rule(_renewed(cohort, images, breasts, rows), step=step)


def exclude_exams(cohort: Cohort, reasons: dict[str, str], step: str) -> Cohort:
    """The cohort with exams (research ID -> reason) set aside, their images and breasts with them."""
    images, breasts = cohort.images.copy(), cohort.breasts.copy()
    for frame in (images, breasts):
        out = frame["exam"].isin(reasons) & (frame["status"] == USED)
        frame.loc[out, "reason"] = frame.loc[out, "exam"].map(reasons)
        frame.loc[out, ["status", "step"]] = EXCLUDED, step
    rows = [{"kind": "exam", "what": exam, "reason": reason} for exam, reason in sorted(reasons.items())]
    return _renewed(cohort, images, breasts, rows)


def apply_rule(cohort: Cohort, step: str = "cohort") -> Cohort:
    """Hold the exams against the cohort's rule. Raises ValueError for a rule that does not exist.

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
    left = dict.fromkeys(exams.index[~kept], RULES[cohort.rule])
    return exclude_exams(cohort, left, step) if left else cohort


def exclude_conflicting_duplicates(cohort: Cohort, index: pd.DataFrame, conflicts: str = "exclude") -> Cohort:
    """The cohort without the exams whose twins contradict them, where `conflicts` is "excluded" (else "keep").

    `index`: exam, view, sha256, as Store.hashes has them.
    """
    groups = patient_groups(cohort, index, conflicts)
    out = cohort.exams.index.difference(groups.index)
    if not len(out):
        return cohort
    found = find_duplicates(cohort, index)
    others = {}
    for exams in found.groupby("sha256")["exam"].unique():
        for exam in exams:
            others.setdefault(exam, set()).update(set(exams) - {exam})
    reason = "the same pixels stand under another patient with another label"
    reasons = {exam: ": ".join([reason, *filter(None, [", ".join(sorted(others.get(exam, ())))])]) for exam in out}
    return exclude_exams(cohort, reasons, "duplicates")


def exclusion_rows(images: pd.DataFrame, breasts: pd.DataFrame) -> list[dict]:
    """Rows of the table excluded for rows of images and breasts that are set aside."""
    rows = [{"kind": "image", "what": row["path"], "reason": row["reason"]} for row in images.to_dict("records")]
    return rows + [
        {"kind": "breast", "what": f"{row['exam']} {row['side']}", "reason": row["reason"]}
        for row in breasts.to_dict("records")
    ]


def _renewed(cohort: Cohort, images: pd.DataFrame, breasts: pd.DataFrame, rows: list[dict]) -> Cohort:
    """The cohort with its exam table made anew, and rows added to what was set aside."""
    exams = exam_table(breasts, images, cohort.lesions, cohort.exams["age"].to_dict(), "")
    exams["dataset"] = cohort.exams["dataset"].reindex(exams.index)
    excluded = pd.concat([cohort.excluded, table("excluded", rows)], ignore_index=True)
    return check(replace(cohort, exams=exams, images=images, breasts=breasts, excluded=excluded))
