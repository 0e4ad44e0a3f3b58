"""The exams of the reading room: the list, its filters, and all that is shown of one exam.

The prediction from every subset of the views is stored in each run's `views.parquet`. An exam's payload holds all of
them, so that the browser needs no answer of the kernel when a view is shown or hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.data.cohort import load_cohort
from mammo_utils.evaluation.gate import main_task, view_shares
from mammo_utils.evaluation.runs import RunResult, categories, probabilities, read_views, with_views
from mammo_utils.evaluation.view_ablation import present_views
from mammo_utils.images.store import Outline, load_store
from mammo_utils.io import plain_values
from mammo_utils.plots.data import describe_breast
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.run import load_data
from mammo_utils.training.run_state import SALIENCY
from mammo_utils.training.saliency import METHODS, SaliencyMaps, load_maps
from mammo_utils.vocabulary import CLASSES, DENSITIES, MODE_TITLES, SIDES, SYSTEMS, VIEWS

ORDERS = {  # of the list -> the columns that it is sorted by
    "wrong first": ["wrong", "error", "exam"],
    "heat maps first": ["mapped", "wrong", "error", "exam"],
    "by name": ["exam"],
}
FINDINGS = ("left", "right", "both", "none")  # the side of a cancer or an outlined lesion


@dataclass(frozen=True)
class Room:
    """The exams of a run's reported part, and the runs that predict them.

    Attributes:
        exams: The exams with their images.
        facts: The cohort's exam table.
        outlines: (exam, view) -> its outlined lesions.
        aspects: (exam, view) -> width / height of the original's region that the stored image shows.
        runs: The runs; the first is the main one, by which exams are sorted.
        views: Run -> exam -> its rows of `views.parquet`.
        maps: Run -> its saliency maps, if it has any.
        note: The name of the cohort, such as "synthetic cohort".
    """

    exams: ExamSet
    facts: pd.DataFrame
    outlines: Mapping[tuple[str, str], Sequence[Outline]]
    aspects: Mapping[tuple[str, str], float]
    runs: Sequence[RunResult]
    views: Mapping[str, Mapping[str, pd.DataFrame]]
    maps: Mapping[str, SaliencyMaps]
    note: str

    def table(self) -> pd.DataFrame:
        """Make the list of exams, one row each.

        Returns:
            exam; classes, birads and density (each of both breasts); finding, one of FINDINGS; n_views; outlined;
            mapped, whether the main run has a saliency map of it; wrong, whether the main run takes a labelled breast
            for another class; error, the largest probability that it gives to the other classes, NaN without a label.
        """
        run, task = self.runs[0], main_task(self.runs[0])
        mapped = set(self.maps[run.id].exams) if run.id in self.maps else set()
        errors = {name: _error(run, rows, task) for name, rows in self.views[run.id].items()}
        rows = []
        for position, name in enumerate(self.exams.names):
            facts = self.facts.loc[name]
            outlined = [any((name, view) in self.outlines for view in VIEWS if view[0] == side) for side in SIDES]
            found = [facts[f"{s}_diagnosis"] == 1 or lines for s, lines in zip(SIDES, outlined, strict=True)]
            error, wrong = errors.get(name, (np.nan, False))
            rows.append(
                {
                    "exam": name,
                    "classes": [facts[f"{side}_class"] for side in SIDES],
                    "birads": [int(facts[f"{side}_birads"]) for side in SIDES],
                    "density": [facts[f"{side}_density"] for side in SIDES],
                    "finding": FINDINGS[[(1, 0), (0, 1), (1, 1), (0, 0)].index(tuple(map(int, found)))],
                    "n_views": int(self.exams.present[position].sum()),
                    "outlined": any(outlined),
                    "mapped": name in mapped,
                    "wrong": wrong,
                    "error": error,
                }
            )
        return pd.DataFrame(rows)

    def options(self) -> dict[str, list[str]]:
        """The values that the filters of `choose` accept beside ""."""
        birads = [f"BI-RADS {category}" for category in self.exams.categories]
        numbers = sorted({int(n) for n in self.exams.present.sum(1)}, reverse=True)
        labels = [*reversed(CLASSES), *birads]
        return {
            "label": labels,
            "finding": list(FINDINGS),
            "density": list(DENSITIES),
            "views": [str(n) for n in numbers],
            "order": list(ORDERS),
        }

    def payload(self, name: str) -> dict[str, Any]:
        """Collect what is shown of one exam: labels, images as bytes, outlines, saliency maps and predictions.

        Points of outlines are in [0, 1], from the chest wall and from the top. Raises ValueError for another exam.
        """
        if name not in self.exams.names:
            raise ValueError(f"The exam {name!r} is not in the list; choose one of {len(self.exams)} others.")
        position = self.exams.names.index(name)
        views = []
        for view, row in zip(VIEWS, self.exams.rows[position].tolist(), strict=True):
            image = self.exams.images[row].cpu().numpy() if row >= 0 else None
            lines = self.outlines.get((name, view), []) if row >= 0 else []
            views.append(
                {
                    "image": image.tobytes() if image is not None else None,
                    "side": len(image) if image is not None else 0,
                    "aspect": float(self.aspects.get((name, view), 1)),
                    "outlines": [
                        {"kind": line.kind, "points": ((line.points + 0.5) / len(image)).round(4).tolist()}
                        for line in lines
                    ],
                }
            )
        facts = self.facts.loc[name]
        age = f", {facts['age']:.0f} years" if facts["age"] == facts["age"] else ""
        return {
            "exam": name,
            "title": f"{name}{age}",
            "labels": [describe_breast(facts, side) for side in SIDES],
            "views": views,
            "maps": {run: found for run, maps in self.maps.items() if (found := exam_maps(maps, name))},
            "runs": {
                run.id: exam_predictions(run, self.views[run.id][name])
                for run in self.runs
                if name in self.views[run.id]
            },
        }

    def about(self) -> dict[str, Any]:
        """Describe the runs and the cohort."""
        runs = []
        for run in self.runs:
            entry, part = SYSTEMS[run.spec.system], run.metrics["parts"].get(run.reported, {})
            more = [f"seed {run.spec.seed}"] if run.spec.seed else []
            more += [MODE_TITLES[run.spec.task_mode]] if len(run.tasks) == 1 else []
            runs.append(
                {
                    "id": run.id,
                    "title": ", ".join([entry.short, *more]),
                    "colour": entry.colour,
                    "classes": {task: list(categories(run, task)) for task in run.tasks},
                    "auc": part.get(main_task(run), {}).get("auc"),
                    "stale": run.stale,
                    "first": not more,
                }
            )
        return plain_values({"runs": runs, "note": self.note, "part": self.runs[0].reported, "methods": METHODS})


def open_room(runs: Sequence[RunResult], run_id: str, note: str) -> Room:
    """Open the reading room on the reported part of a run.

    Args:
        runs: What `read_runs` returns. Shown are the finished ones of the main run's subset and fold, without variants.
        run_id: The main run.
        note: The name of the cohort.

    Raises:
        OSError, ValueError: As `training.run.load_data`, such as a store that is gone.
    """
    main = next(run for run in runs if run.id == run_id)
    folder = main.spec.folder.parents[1]
    store = load_store(folder / "store")
    data = load_data(main.spec, store=store)
    alike = [
        run
        for run in with_views(runs)
        if (run.spec.subset, run.spec.fold) == (main.spec.subset, main.spec.fold) and not run.spec.variant
    ]
    chosen = [main, *(run for run in alike if run.id != main.id)]
    index = store.index
    return Room(
        exams=data.parts[data.reported],
        facts=load_cohort(folder / "cohort").exams,
        outlines=data.outlines,
        aspects=dict(
            zip(zip(index["exam"], index["view"], strict=True), index["width"] / index["height"], strict=True)
        ),
        runs=chosen,
        views={run.id: dict(tuple(read_views(run).groupby("exam"))) for run in chosen},
        maps={run.id: load_maps(path) for run in chosen if (path := run.spec.folder / SALIENCY).is_file()},
        note=note,
    )


def choose(table: pd.DataFrame, filters: Mapping[str, str]) -> pd.DataFrame:
    """Filter and sort the list of exams.

    Args:
        table: Made by `Room.table`.
        filters: `label` (a class, or "BI-RADS 5"), `finding`, `density`, `views`, `order`; see `Room.options`. An
            empty or missing value accepts every exam; the order is the first of ORDERS unless it is named.
    """
    kept = pd.Series(True, table.index)
    if label := filters.get("label"):
        values = table["birads"] if label.startswith("BI-RADS") else table["classes"]
        wanted: Any = int(label.split()[-1]) if label.startswith("BI-RADS") else label
        kept &= values.map(lambda of: wanted in of)
    if finding := filters.get("finding"):
        kept &= table["finding"] == finding
    if density := filters.get("density"):
        kept &= table["density"].map(lambda of: density in of)
    if number := filters.get("views"):
        kept &= table["n_views"] == int(number)
    keys = ORDERS[filters.get("order") or "wrong first"]
    return table[kept].sort_values(keys, ascending=[key == "exam" for key in keys], ignore_index=True)


def first_exam(table: pd.DataFrame) -> str:
    """The exam to open with: one with four views, an outlined lesion and a saliency map, as far as there is one."""
    order = table.sort_values(["n_views", "outlined", "mapped", "exam"], ascending=[False, False, False, True])
    return str(order["exam"].iloc[0])


def exam_predictions(run: RunResult, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """What a run predicts for one exam from each subset of its views, as `view_ablation.stored_prediction` finds it.

    Args:
        run: The run.
        rows: The exam's rows of the run's `views.parquet`.

    Returns:
        Number of the subset (see `training.views.VIEW_SUBSETS`) -> `tasks` (task -> (2, K) by side), `weights` (4,) and
        `shares` (2, 4), the contributions to the log-odds of the main task; None in place of NaN.
    """
    rows, task = rows.sort_values(["views", "side"]), main_task(run)
    n = len(rows) // 2
    tasks = {of: probabilities(rows, of, categories(run, of)).reshape(n, 2, -1) for of in run.tasks}
    weights = rows[[f"weight_{view}" for view in VIEWS]].to_numpy(float)[::2]
    shares = view_shares(rows, task, categories(run, task)).reshape(n, 2, -1)
    return {
        str(subset): plain_values(
            {
                "tasks": {of: p[i].tolist() for of, p in tasks.items()},
                "weights": weights[i].tolist(),
                "shares": shares[i].tolist(),
            }
        )
        for i, subset in enumerate(rows["views"].iloc[::2])
    }


def exam_maps(maps: SaliencyMaps, name: str) -> dict[str, dict[str, Any]]:
    """The positive saliency of an exam: index of the view -> method -> `rows`, `columns`, and `values` as bytes."""
    found: dict[str, dict[str, Any]] = {}
    for number, view in ((i, maps.views[i]) for i, exam in enumerate(maps.exams) if exam == name):
        for method in METHODS:
            values = np.maximum(maps.maps[method][number], 0)
            scaled = (values / (values.max() or 1) * 255).round().astype(np.uint8)
            shape = {"rows": values.shape[0], "columns": values.shape[1]}
            found.setdefault(str(VIEWS.index(view)), {})[method] = shape | {"values": scaled.tobytes()}
    return found


def _error(run: RunResult, rows: pd.DataFrame, task: str) -> tuple[float, bool]:
    """The largest probability of the wrong classes over an exam's labelled breasts, and whether one is misread."""
    classes = list(categories(run, task))
    known = rows[(rows["views"] == present_views(rows)) & rows[task].isin(classes)]
    if not len(known):
        return np.nan, False
    p, labels = probabilities(known, task, classes), [classes.index(label) for label in known[task]]
    own = p[np.arange(len(p)), labels]
    return float((1 - own).max()), bool((p.argmax(1) != labels).any())
