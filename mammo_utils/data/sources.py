"""The data sets that a study can read.

To add one, write a module beside `vindr_mammo.py` with a function that returns a Cohort, and add an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mammo_utils.io import display_path

if TYPE_CHECKING:
    from mammo_utils.data.cohort import Cohort


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        title: Its name in figures and tables.
        reader: `module:function` that reads its folder into a Cohort.
        corrects: Whether the reader takes `corrections`, because known errors of the release can be corrected.
        ids: Pattern of its research IDs, where their form shows that they identify nobody; "" if it does not.
    """

    title: str
    reader: str
    corrects: bool = False
    ids: str = ""


SOURCES: dict[str, Source] = {
    "synthetic": Source(  # in CMMD's format
        "synthetic cohort", "mammo_utils.data.cmmd:read_cmmd", corrects=True, ids=r"S[12]-\d{4,}"
    ),
    "cmmd": Source("TOMPEI-CMMD", "mammo_utils.data.cmmd:read_cmmd", corrects=True, ids=r"D[12]-\d{4}"),
    "ddsm": Source("CBIS-DDSM", "mammo_utils.data.cbis_ddsm:read_cbis_ddsm"),
    "inbreast": Source("INbreast", "mammo_utils.data.inbreast:read_inbreast"),
    "rsna": Source("RSNA 2022", "mammo_utils.data.rsna:read_rsna"),
    "vindr": Source("VinDr-Mammo", "mammo_utils.data.vindr_mammo:read_vindr_mammo"),
}


def read_cohort(
    source: str,
    folder: Path,
    *,
    cohort: str = "usable",
    corrections: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cohort:
    """Read a data folder.

    Args:
        source: A key of SOURCES.
        folder: The data folder.
        cohort: The exams to keep: "usable" (all with a usable breast), "annotated" (those with a lesion outline) or
            "complete" (those with all four views).
        corrections: Whether to correct known errors of the release (`corrections.csv`); each is listed in the
            cohort's table `corrections`.
        progress: Called with (files read, files in total).

    Returns:
        The cohort, before its pixels have been read.

    Raises:
        DataError: Something is missing or wrong; the message names it.
        ValueError: There is no such source.
    """
    if source not in SOURCES:
        raise ValueError(f"There is no data source {source!r}; accepted are {', '.join(SOURCES)}.")
    folder, entry = Path(folder), SOURCES[source]
    if not folder.is_dir():
        from mammo_utils.data.cohort import DataError  # imported here because the configuration needs no tables

        raise DataError(
            f"There is no data folder {display_path(folder)}; put {entry.title} there or name another in data.folder."
        )
    module, function = entry.reader.split(":")
    options = {"corrections": corrections} if entry.corrects else {}
    return getattr(import_module(module), function)(folder, cohort=cohort, progress=progress, **options)
