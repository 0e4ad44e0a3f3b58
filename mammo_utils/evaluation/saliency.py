"""Scores of saliency maps against the outlines of lesions, beside maps that know nothing of the system.

A map can look plausible and still show nothing of what the system has learnt (Adebayo et al., NeurIPS 2018). Each map
is therefore scored beside that of the same system with random weights and that of another patient, and beside three
maps drawn from the image alone: the brightest tissue, the centre of the breast, and the breast as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import binary_dilation
from torch.nn import functional as F

from mammo_utils.evaluation.bootstrap import FEWEST, Interval, bootstrap_settings, mean_interval
from mammo_utils.evaluation.intervals import wilson_interval
from mammo_utils.evaluation.readable import write_range
from mammo_utils.evaluation.runs import RunResult
from mammo_utils.evaluation.subgroups import SIZES
from mammo_utils.images.preprocess import AIR
from mammo_utils.study import Study
from mammo_utils.training.run_state import SALIENCY
from mammo_utils.training.saliency import METHODS, RANDOM, SaliencyMaps, load_maps

MAPS = {  # what is scored beside the map of the trained system, in the order of the figure
    "trained": "the trained system",
    "random": "random weights",
    "other": "another patient's map",
    "brightest": "brightest tissue",
    "centre": "centre of the breast",
    "uniform": "the whole breast alike",
}
MEASURES = ("pointing", "energy", "ratio", "top")
TOP = 0.05  # share of the breast's pixels


def score_map(values: np.ndarray, mask: np.ndarray, breast: np.ndarray) -> dict[str, float]:
    """Score one map against the mask of the lesions, both of s x s pixels.

    Args:
        values: (s, s), higher where the map shows more evidence for the last class.
        mask: (s, s) bool.
        breast: (s, s) bool.

    Returns:
        `pointing`, 1 if the map is highest in the mask; `energy`, the share of the map's positive values that lies in
        the mask, 0 if there are none; `ratio`, the energy divided by the share of the breast that lies in the mask;
        `top`, the share of the mask among the breast's pixels with the highest 5 % of the values. Of tied pixels each
        is chosen with the same probability, and `pointing` and `top` are expected values. A map that is the same all
        over the breast, and nowhere higher, has no highest pixel: both are NaN.
    """
    positive = np.maximum(values.astype(float), 0)
    energy = positive[mask].sum() / positive.sum() if positive.any() else 0.0
    area = mask[breast].mean() if breast.any() else np.nan
    flat = bool((values[breast] == values.max()).all())
    return {
        "pointing": np.nan if flat else _share_of_highest(values.ravel(), mask.ravel(), 1),
        "energy": float(energy),
        "ratio": float(energy / area) if area > 0 else np.nan,
        "top": np.nan if flat else _share_of_highest(values[breast], mask[breast], max(1, round(TOP * breast.sum()))),
    }


def _share_of_highest(values: np.ndarray, inside: np.ndarray, n: int) -> float:
    """The expected share of `inside` among the n highest values; of tied ones each is chosen with equal probability."""
    lowest = np.partition(values, -n)[-n]
    above, tied = values > lowest, values == lowest
    return float((inside[above].sum() + (n - above.sum()) * inside[tied].mean()) / n)


def plain_maps(image: np.ndarray, breast: np.ndarray) -> dict[str, np.ndarray]:
    """Make the maps that need no system: `brightest`, `centre` and `uniform` of MAPS.

    Args:
        image: (s, s) uint8.
        breast: (s, s) bool, not empty.
    """
    grey = image.astype(float)
    places = np.argwhere(breast)
    distance = ((np.indices(breast.shape) - places.mean(0)[:, None, None]) ** 2).sum(0)
    return {
        "brightest": grey * (grey >= np.quantile(grey[breast], 1 - TOP)) * breast,
        "centre": np.exp(-distance / (2 * (len(places) / 16))),  # a Gaussian; a quarter of a square breast's side
        "uniform": breast.astype(float),
    }


def enlarge(values: np.ndarray, side: int) -> np.ndarray:
    """Interpolate a map (h, w) bilinearly to (side, side)."""
    tensor = torch.from_numpy(np.asarray(values, np.float32))[None, None]
    return F.interpolate(tensor, (side, side), mode="bilinear", align_corners=False)[0, 0].numpy()


def cell_size(maps: SaliencyMaps, method: str) -> int:
    """Side of one cell of a method's maps, in pixels of the stored images, rounded up."""
    return -(-maps.images.shape[1] // maps.maps[method].shape[1])


def score_maps(maps: SaliencyMaps) -> pd.DataFrame:
    """Score every map of a run and those that it is compared with.

    The mask is enlarged by one cell of the method's map on each side, the precision with which the map can be drawn. A
    lesion smaller than a cell is not scored.

    Args:
        maps: The maps of a run.

    Returns:
        One row per view, method and map of MAPS: exam, group, view, kind, method, map, `area` (pixels of the stored
        image within the outlines), `scored`, and MEASURES, empty where `scored` is False.
    """
    rows, side = [], maps.images.shape[1]
    breasts = maps.images > AIR * 255
    other = [_another_patient(maps.groups, i) for i in range(len(maps.exams))]
    for method in METHODS:
        cell = cell_size(maps, method)
        for i, exam in enumerate(maps.exams):
            mask = binary_dilation(maps.masks[i], np.ones((2 * cell + 1, 2 * cell + 1)))
            area = int(maps.masks[i].sum())
            scored = area >= cell**2 and bool(breasts[i].any())
            found: dict[str, np.ndarray | None] = dict.fromkeys(MAPS)
            if scored:
                found["trained"] = enlarge(maps.maps[method][i], side)
                found["random"] = enlarge(maps.maps[RANDOM + method][i], side)
                found["other"] = None if other[i] is None else enlarge(maps.maps[method][other[i]], side)
                found |= plain_maps(maps.images[i], breasts[i])
            for name, values in found.items():
                row = {"exam": exam, "group": maps.groups[i], "view": maps.views[i], "kind": maps.kinds[i]}
                row |= {"method": method, "map": name, "area": area, "scored": scored}
                rows.append(row | (dict.fromkeys(MEASURES) if values is None else score_map(values, mask, breasts[i])))
    table = pd.DataFrame(rows, columns=[*"exam group view kind method map area scored".split(), *MEASURES])
    return table.astype(dict.fromkeys(MEASURES, float))


def _another_patient(groups: Sequence[str], i: int) -> int | None:
    """The next of the views that is of another patient."""
    order = [*range(i + 1, len(groups)), *range(i)]
    return next((j for j in order if groups[j] != groups[i]), None)


def saliency_scores(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Score the maps of each finished run that has some.

    Returns:
        The rows of `score_maps`, with `run` in front and `size`, the third of the run's lesions by area.
    """
    tables = []
    for run in runs:
        path = run.spec.folder / SALIENCY
        if run.finished and path.is_file():
            table = score_maps(load_maps(path))
            ends = np.quantile(table.drop_duplicates(["exam", "view"])["area"], [1 / 3, 2 / 3])
            table["size"] = np.array(SIZES)[np.searchsorted(ends, table["area"])]
            tables.append(table.assign(run=run.id))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["run", "method", "map"])
    return table[["run", *(name for name in table if name != "run")]]


def saliency_table(scores: pd.DataFrame, study: Study, by: Sequence[str] = ()) -> pd.DataFrame:
    """Average the scores over the scored views, with intervals over patients.

    Args:
        scores: Made by `saliency_scores`; may have further columns.
        study: The study, for the settings of the bootstrap.
        by: Columns to divide the rows by besides run, method and map, such as "kind".

    Returns:
        run, method, map, the columns of `by`, `n_views` (scored), `n_small` (lesions smaller than a cell), MEASURES,
        and `gain`: the energy of the trained system's map minus that of this other map, on the same views. A view
        without a highest pixel does not count for `pointing` and `top`. Ends of intervals are `<measure>_low` and
        `<measure>_high`; there are none below five patients.
    """
    settings, rows = bootstrap_settings(study), []
    keys = ["run", "method", "map", *by]
    for key, table in scores.groupby(keys, sort=False) if len(scores) else ():
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        known = table[table["energy"].notna()]
        row |= {"n_views": len(known), "n_small": int((~table["scored"]).sum())}
        own = scores[(scores[["run", "method"]] == list(key[:2])).all(axis=1) & (scores["map"] == "trained")]
        trained = known.merge(own, on=["exam", "view"], suffixes=("", "_trained"))["energy_trained"].to_numpy()
        groups = known["group"].to_numpy(str)
        measures = {name: known[name].to_numpy() for name in MEASURES}
        measures["gain"] = np.where(row["map"] != "trained", trained - measures["energy"], np.nan)
        for name, values in measures.items():
            defined = ~np.isnan(values)
            pair = values[defined], groups[defined]
            found = Interval(*wilson_interval(*pair)) if name == "pointing" else mean_interval(*pair, **settings)
            if len(set(pair[1])) < FEWEST:
                found = Interval(found.value)
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def state_saliency(table: pd.DataFrame) -> list[str]:
    """State in sentences what the scores show; `table` is made by `saliency_table`, not divided further."""
    if not len(table):
        return ["No run has saliency maps, for which positive breasts with outlined lesions are needed."]
    sentences = []
    for method, title in METHODS.items():
        rows = table[table["method"] == method]
        own = rows[(rows["map"] == "trained") & (rows["n_views"] > 0)]
        if own.empty:
            sentences.append(f"{_capital(title)} is not scored: every lesion is smaller than a cell of the map.")
            continue
        tested = rows[rows["gain_low"].notna() & (rows["map"] != "trained")]
        more = tested[tested["gain_low"] > 0].groupby("run")["map"].agg(set)
        every = sum(found == set(MAPS) - {"trained"} for found in more)
        untrained = sum("random" in found for found in more)
        bright = rows[rows["map"] == "brightest"]
        n, views = len(own), write_range(own["n_views"], "d")
        sentences.append(
            f"{_capital(title)} ({n} run{'s' * (n > 1)}, {views} outlined views of each): "
            f"{write_range(own['energy'], '.0%')} of the positive values lie in the lesion or one cell beside it, "
            f"{write_range(own['ratio'], '.1f')} times as many as if they were spread evenly over the breast. Of the "
            f"brightest tissue, {write_range(bright['energy'], '.0%')} lies there. "
        )
        sentences[-1] += (
            f"The share is higher than with random weights in {untrained} of {n} runs, and higher than in all five "
            f"comparison maps in {every} (interval of the difference above 0)."
            if len(tested)
            else "There are too few views for intervals."
        )
    return sentences


def _capital(title: str) -> str:
    return title[0].upper() + title[1:]
