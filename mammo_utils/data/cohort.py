"""The cohort: one exam table for every data set, and a record of everything that was found and excluded.

Datasheet of the default data, TOMPEI-CMMD (data DOI 10.7937/tcia.eqde-4b16, labels DOI 10.7937/wezw-bh22, both
CC BY 4.0): 5,202 images of 2,601 breasts of 1,775 patients, one CC and one MLO per breast; 826 patients with four
views. Diagnosis from biopsy or follow-up (CMMD, corrected by TOMPEI); BI-RADS, density and lesion outlines (MLO
only) by the readers of TOMPEI-CMMD. Breasts: malignant 1167, normal 1054, benign 215, invisible 140, excluded
25; BI-RADS 1: 1055, 2: 79, 3: 252, 4: 399, 5: 665, none 151. Some diagnoses and BI-RADS disagree by design.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from mammo_utils.io import atomic_write, display_path, project_root, read_json, write_json
from mammo_utils.vocabulary import CLASSES, DENSITIES, LESION_KINDS, SIDES, VIEWS

USED, EXCLUDED = "used", "excluded"
# The steps at which an image, a breast or an exam can be excluded, in their order.
STEPS = ("reading", "corrections", "labels", "cohort", "pixels", "duplicates", "subset")


class DataError(ValueError):
    """Data are missing or not as documented; the message names the file and what to do."""


@dataclass(frozen=True)
class Cohort:
    """Everything found in a data folder, as tables. Their columns are explained in SCHEMAS.

    Attributes:
        name: Name of the data set.
        folder: The data folder.
        synthetic: Whether the data are drawn by a program.
        exams: One row per exam that is used, indexed by its research ID.
        images: One row per image found, used or excluded.
        breasts: One row per breast found in labels or images, used or excluded.
        lesions: One row per outlined lesion.
        excluded: One row per file, image, breast, annotation or exam that was excluded, and per file that was not read.
        corrections: One row per known error that concerns this folder.
        rule: Which exams are kept, a key of `data.exclusions.RULES`.
    """

    name: str
    folder: Path
    synthetic: bool
    exams: pd.DataFrame
    images: pd.DataFrame
    breasts: pd.DataFrame
    lesions: pd.DataFrame
    excluded: pd.DataFrame
    corrections: pd.DataFrame = field(default_factory=lambda: table("corrections", []))
    rule: str = "usable"

    @property
    def label(self) -> str:
        """The name printed on every picture and table made from this cohort."""
        return "synthetic cohort" if self.synthetic else self.name


def _text(*allowed: str) -> pa.Column:
    return pa.Column(str, pa.Check.isin(allowed) if allowed else None)


def _schema(columns: dict[str, pa.Column], **options) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, strict=True, ordered=True, **options)


LABELS = {
    "class": _text("", *CLASSES),  # "" absent
    "diagnosis": pa.Column("int8", pa.Check.isin([-1, 0, 1])),  # 1 malignant, 0 not, -1 absent
    "birads": pa.Column("int8", pa.Check.isin([-1, 1, 2, 3, 4, 5])),  # -1 absent
    "density": _text("", *DENSITIES),  # "" unknown
}
STATUS = {
    "status": _text(USED, EXCLUDED),
    "step": _text("", *STEPS),  # where it was excluded, "" if it is used
    "reason": _text(),  # why it was excluded: a clause, and details after the first ": "
}
SCHEMAS = {
    "exams": _schema(
        {
            "age": pa.Column(float, pa.Check.in_range(0, 130), nullable=True),  # years, NaN unknown
            "dataset": _text(),
            **{f"{side}_{name}": column for name, column in LABELS.items() for side in SIDES},  # L_class, R_class, ...
            **{f"{side}_lesions": pa.Column("int64", pa.Check.ge(0)) for side in SIDES},  # number of outlined lesions
            **{view: pa.Column(bool) for view in VIEWS},  # whether the exam has that view
        },
        index=pa.Index(str, name="exam", unique=True),
    ),
    "images": _schema(
        {
            # `image` is the SOPInstanceUID, view and side are corrected, `path` is relative to the folder, with /
            **{name: _text() for name in ("image", "exam", "view", "side", "path")},
            **{name: pa.Column("int64") for name in ("rows", "columns", "bits_stored")},
            **{name: _text() for name in ("photometric", "transfer_syntax", "note")},  # note: contradictory tags
            "mirrored": pa.Column(bool),  # known to be stored mirrored
            **STATUS,
        },
        unique=["path"],
    ),
    "breasts": _schema(  # note: contradictory labels
        {"exam": _text(), "side": _text(*SIDES), **LABELS, "note": _text(), **STATUS}, unique=["exam", "side"]
    ),
    "lesions": _schema(  # points: JSON list of [x, y], pixels of the stored image, y down, clipped to the image
        {"exam": _text(), "side": _text(*SIDES), "view": _text(*VIEWS), "kind": _text(*LESION_KINDS), "points": _text()}
    ),
    "corrections": _schema(
        {name: _text() for name in ("exam", "where", "kind", "value", "source")}
        | {"applied": pa.Column(bool), "why_not": _text()}
    ),
    "excluded": _schema(
        {
            "kind": _text("file", "image", "breast", "annotation", "exam", "junk", "other"),
            "what": _text(),
            "reason": _text(),
        }
    ),
}
TABLES = tuple(SCHEMAS)


def _cast(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame.astype({column: str(spec.dtype) for column, spec in SCHEMAS[name].columns.items()})


def check(cohort: Cohort) -> Cohort:
    """Validate every table against its schema. Raises DataError naming the table, the column and a value."""
    for name, schema in SCHEMAS.items():
        try:
            schema.validate(getattr(cohort, name))
        except pa.errors.SchemaError as error:
            raise DataError(f"{cohort.name}, table {name}: {' '.join(str(error).split())}") from None
    return cohort


def table(name: str, rows: list[dict]) -> pd.DataFrame:
    """Make one of the TABLES from rows, with the columns and types of its schema.

    A column that no row has is filled with "" (text) or False (yes or no).
    """
    columns = SCHEMAS[name].columns
    frame = pd.DataFrame(rows, columns=list(columns))
    for column in set(columns).difference(*rows):
        frame[column] = {"str": "", "bool": False}.get(str(columns[column].dtype), frame[column])
    return _cast(frame, name)


def exam_table(
    breasts: pd.DataFrame, images: pd.DataFrame, lesions: pd.DataFrame, ages: dict[str, float], dataset: str
) -> pd.DataFrame:
    """Make the exam table, one row per exam with a used image.

    Args:
        breasts: The table of breasts; only used ones count.
        images: The table of images; only used ones count.
        lesions: The table of lesions.
        ages: Exam -> years.
        dataset: Name of the data set.
    """
    breasts, images = breasts[breasts["status"] == USED], images[images["status"] == USED]
    labels = breasts.set_index(["exam", "side"])[list(LABELS)].assign(lesions=lesions.groupby(["exam", "side"]).size())
    present = set(zip(images["exam"], images["view"], strict=True))
    exams = pd.Index(sorted(set(images["exam"])), name="exam", dtype=object)
    columns: dict[str, object] = {"age": exams.map(pd.Series(ages, dtype=float)), "dataset": dataset}
    for name, default in {"class": "", "diagnosis": -1, "birads": -1, "density": "", "lesions": 0}.items():
        for side in SIDES:
            columns[f"{side}_{name}"] = labels[name].reindex([(exam, side) for exam in exams]).fillna(default).array
    columns |= {view: [(exam, view) in present for exam in exams] for view in VIEWS}
    return _cast(pd.DataFrame(columns, index=exams), "exams")


def save_cohort(cohort: Cohort, folder: Path) -> None:
    """Write the tables as parquet, `excluded` as CSV for human readers, and cohort.json last.

    The data folder is stored relative to the project, so that the project can be moved.
    """
    for name in TABLES[:-1]:
        with atomic_write(folder / f"{name}.parquet") as file:
            getattr(cohort, name).to_parquet(file)
    with atomic_write(folder / "excluded.csv") as file:
        cohort.excluded.to_csv(file, index=False)
    source = os.path.relpath(cohort.folder, project_root())
    facts = {"name": cohort.name, "folder": source, "synthetic": cohort.synthetic, "rule": cohort.rule}
    write_json(folder / "cohort.json", facts)


def load_cohort(folder: Path) -> Cohort:
    """Load a cohort that `save_cohort` wrote. Raises DataError naming the notebook to run if a file is missing.

    Notebook 01 writes what it found to the study's folder `found`, notebook 02 the final cohort to `cohort`.
    """
    names = ["cohort.json", "excluded.csv", *(f"{name}.parquet" for name in TABLES[:-1])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        notebook = "02_preprocessing" if folder.name == "cohort" else "01_data_exploration"
        raise DataError(f"{display_path(folder)} has no {missing[0]}; run notebook {notebook} of the study first.")
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES[:-1]}
    tables["excluded"] = pd.read_csv(folder / "excluded.csv", dtype=str, keep_default_na=False)
    facts = read_json(folder / "cohort.json")
    source = Path(os.path.normpath(project_root() / facts["folder"]))
    return check(Cohort(facts["name"], source, facts["synthetic"], **tables, rule=facts["rule"]))
