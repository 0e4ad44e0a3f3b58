"""The exam table: one row an exam, whatever data set it comes from, and everything that was set aside.

Datasheet of the default data, TOMPEI-CMMD (data DOI 10.7937/tcia.eqde-4b16, labels DOI 10.7937/wezw-bh22, both
CC BY 4.0): 5,202 images of 2,601 breasts of 1,775 patients, one CC and one MLO a breast; 826 patients with four
views. Diagnosis from biopsy or follow-up (CMMD, corrected by TOMPEI), BI-RADS, density and lesion outlines (MLO
alone) by the readers of TOMPEI-CMMD. Breasts: malignant 1167, normal 1054, benign 215, invisible 140, excluded
25; BI-RADS 1: 1055, 2: 79, 3: 252, 4: 399, 5: 665, none 151. Labels and BI-RADS disagree at times by design.
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
STEPS = (
    "reading",
    "corrections",
    "labels",
    "cohort",
    "pixels",
    "duplicates",
    "subset",
)  # where an exclusion is decided, in order
TABLES = ("exams", "images", "breasts", "lesions", "corrections", "excluded")


class DataError(ValueError):
    """Data are missing or not as documented; the message names the file and what to do."""


@dataclass(frozen=True)
class Cohort:
    """What was found in a data folder, as tables; nothing found is left out of all of them.

    exams: index exam (research ID). age (years, NaN unknown), dataset, and for each side S of L, R:
        S_class (one of CLASSES, "" absent), S_diagnosis (1 malignant, 0 not, -1 absent), S_birads (1-5, -1 absent),
        S_density (one of DENSITIES, "" unknown), S_lesions (outlined lesions, 0 absent); for each of VIEWS whether it
        is there.
    images: one row an image found: image (SOPInstanceUID), exam, view and side (corrected), path (relative, with /),
        rows, columns, bits_stored, photometric, transfer_syntax, note (tags that contradict), mirrored (known to be
        stored so), fate, step, reason. Where it is set aside, step is one of STEPS and reason a sentence; what
        follows its first ": " is detail.
    breasts: one row a breast found in labels or images: exam, side, class, diagnosis, birads, density, note (label
        tables that contradict), fate, step, reason.
    lesions: exam, side, view, kind (one of KINDS), points (JSON list of [x, y], pixels of the stored original
        image, x to the right, y down, clipped to the image).
    corrections: one row a known error that concerns this folder: exam, where, kind, value, source, applied, why_not.
    excluded: kind (file, image, breast, annotation, exam, junk), what, reason.
    rule: the cohort, "usable", "annotated" or "complete".
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
        """What stands on every picture and table made from this cohort."""
        return "synthetic cohort" if self.synthetic else self.name


def _text(*allowed: str) -> pa.Column:
    return pa.Column(str, pa.Check.isin(allowed) if allowed else None)


EXAMS = pa.DataFrameSchema(
    {
        "age": pa.Column(float, pa.Check.in_range(0, 130), nullable=True),
        "dataset": _text(),
        **{f"{s}_class": _text("", *CLASSES) for s in SIDES},
        **{f"{s}_diagnosis": pa.Column("int8", pa.Check.isin([-1, 0, 1])) for s in SIDES},
        **{f"{s}_birads": pa.Column("int8", pa.Check.isin([-1, 1, 2, 3, 4, 5])) for s in SIDES},
        **{f"{s}_density": _text("", *DENSITIES) for s in SIDES},
        **{f"{s}_lesions": pa.Column("int64", pa.Check.ge(0)) for s in SIDES},
        **{view: pa.Column(bool) for view in VIEWS},
    },
    index=pa.Index(str, name="exam", unique=True),
    strict=True,
    ordered=True,
)
IMAGES = pa.DataFrameSchema(
    {
        **{name: _text() for name in ("image", "exam", "view", "side", "path")},
        **{name: pa.Column("int64") for name in ("rows", "columns", "bits_stored")},
        **{name: _text() for name in ("photometric", "transfer_syntax", "note")},
        "mirrored": pa.Column(bool),
        "status": _text(USED, EXCLUDED),
        "step": _text("", *STEPS),
        "reason": _text(),
    },
    strict=True,
    ordered=True,
    unique=["path"],
)
BREASTS = pa.DataFrameSchema(
    {
        "exam": _text(),
        "side": _text(*SIDES),
        "class": _text("", *CLASSES),
        "diagnosis": pa.Column("int8", pa.Check.isin([-1, 0, 1])),
        "birads": pa.Column("int8", pa.Check.isin([-1, 1, 2, 3, 4, 5])),
        "density": _text("", *DENSITIES),
        "note": _text(),
        "status": _text(USED, EXCLUDED),
        "step": _text("", *STEPS),
        "reason": _text(),
    },
    strict=True,
    ordered=True,
    unique=["exam", "side"],
)
LESIONS = pa.DataFrameSchema(
    {
        "exam": _text(),
        "side": _text(*SIDES),
        "view": _text(*VIEWS),
        "kind": _text(*LESION_KINDS),
        "points": _text(),
    },
    strict=True,
    ordered=True,
)
REMAINDER = pa.DataFrameSchema(
    {"kind": _text("file", "image", "breast", "annotation", "exam", "junk"), "what": _text(), "reason": _text()},
    strict=True,
    ordered=True,
)
CORRECTIONS = pa.DataFrameSchema(
    {
        **{name: _text() for name in ("exam", "where", "kind", "value", "source")},
        "applied": pa.Column(bool),
        "why_not": _text(),
    },
    strict=True,
    ordered=True,
)
SCHEMAS = dict(zip(TABLES, (EXAMS, IMAGES, BREASTS, LESIONS, CORRECTIONS, REMAINDER), strict=True))


def table(name: str, rows: list[dict]) -> pd.DataFrame:
    """Rows as one of the TABLES, typed and ordered as its schema says; an empty list gives an empty table.

    A column that no row has is "" where it is text, False where it is yes or no.
    """
    schema = SCHEMAS[name]
    frame = pd.DataFrame(rows, columns=list(schema.columns))
    given = set().union(*rows)
    for column, spec in schema.columns.items():
        if column not in given and str(spec.dtype) in ("str", "bool"):
            frame[column] = "" if str(spec.dtype) == "str" else False
    return frame.astype({column: str(spec.dtype) for column, spec in schema.columns.items()})


def exam_table(breasts: pd.DataFrame, images: pd.DataFrame, lesions: pd.DataFrame, ages: dict, dataset: str):
    """One row an exam from the breasts and images that are used."""
    used_breasts, used_images = breasts[breasts["status"] == USED], images[images["status"] == USED]
    present = set(zip(used_images["exam"], used_images["view"], strict=True))
    labels = {(row["exam"], row["side"]): row for row in used_breasts.to_dict("records")}
    outlined = lesions.groupby(["exam", "side"]).size().to_dict()
    nothing = {"class": "", "diagnosis": -1, "birads": -1, "density": ""}
    names = sorted(set(used_images["exam"]))
    rows = []
    for exam in names:
        row = {"age": ages.get(exam, float("nan")), "dataset": dataset}
        for side in SIDES:
            label = labels.get((exam, side), nothing)
            row |= {f"{side}_{name}": label[name] for name in nothing}
            row[f"{side}_lesions"] = outlined.get((exam, side), 0) if (exam, side) in labels else 0
        rows.append(row | {view: (exam, view) in present for view in VIEWS})
    frame = pd.DataFrame(rows, columns=list(EXAMS.columns), index=pd.Index(names, name="exam", dtype=object))
    return frame.astype({column: str(spec.dtype) for column, spec in EXAMS.columns.items()})


def check(cohort: Cohort) -> Cohort:
    """Hold every table against its schema. Raises DataError naming the table, the column and a value."""
    for name, schema in SCHEMAS.items():
        try:
            schema.validate(getattr(cohort, name))
        except pa.errors.SchemaError as error:
            raise DataError(f"{cohort.name}, table {name}: {' '.join(str(error).split())}") from None
    return cohort


def save_cohort(cohort: Cohort, folder: Path) -> None:
    """Write the tables as parquet (excluded as csv, to be read by people) and cohort.json, the last.

    The data folder is kept as seen from the project.
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
    """Read what :func:`save_cohort` wrote. Raises DataError where a file is missing."""
    names = ["cohort.json", "excluded.csv", *(f"{name}.parquet" for name in TABLES[:-1])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{display_path(folder)} has no {missing[0]}; run notebook 01_data_exploration of the study first."
        )
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES[:-1]}
    tables["excluded"] = pd.read_csv(folder / "excluded.csv", dtype=str, keep_default_na=False)
    facts = read_json(folder / "cohort.json")
    source = Path(os.path.normpath(project_root() / facts["folder"]))
    return check(Cohort(facts["name"], source, facts["synthetic"], **tables, rule=facts["rule"]))
