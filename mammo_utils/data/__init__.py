"""From a data folder to the exam table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mammo_utils.data.exams import Cohort


def read_cohort(
    source: str,
    folder: Path,
    *,
    cohort: str = "usable",
    corrections: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cohort:
    """Read a data folder: "cmmd" and "synthetic" (the release's format), "ddsm" (CBIS-DDSM) or "vindr" (VinDr-Mammo).

    cohort: "usable" (excluded and invisible breasts set aside), "annotated" (of these, patients with an outlined
    lesion; refused where a data set has no outlines) or "complete" (with all four views). corrections: whether known
    errors of the release are put right (``corrections.csv`` beside this file); each is listed in the cohort's table
    corrections. Raises DataError: one sentence on what is missing or wrong.
    """
    from mammo_utils.data import ddsm, release, vindr

    others = {"ddsm": ddsm.read_ddsm, "vindr": vindr.read_vindr}
    if source in others:
        return others[source](Path(folder), cohort=cohort, progress=progress)
    return release.read_release(Path(folder), cohort=cohort, corrections=corrections, progress=progress)
