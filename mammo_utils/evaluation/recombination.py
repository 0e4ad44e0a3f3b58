"""Exams made of two patients' breasts, and gates replaced by others: what a system does without the usual exams.

Nearly every exam with four views has a cancer in one breast and none in the other. A system that answers "which side?"
is right about such exams, and wrong about exams with two cancers or none. Recombined exams have all four truths in
equal numbers. A switch that scores one breast of each exam high and the other low has an AUC of `SWITCH_AUC` there: it
scores three of four positive breasts high, and one of four negative ones. They need the encoded views of a run's
`features.safetensors` and its gate and heads, but no image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mammo_utils.evaluation.bootstrap import (
    Interval,
    Sample,
    bootstrap_settings,
    group_weights,
    interval,
    paired_difference,
    percentile_interval,
)
from mammo_utils.evaluation.gate import log_odds, main_task
from mammo_utils.evaluation.intervals import wilson_ends
from mammo_utils.evaluation.readable import write_range
from mammo_utils.evaluation.runs import RunResult, categories, labelled_breasts, run_title, with_views
from mammo_utils.metrics import auc, softmax, weighted_auc
from mammo_utils.models.system import System
from mammo_utils.study import Study
from mammo_utils.training.run import load_run
from mammo_utils.training.views import Features, classify, load_features
from mammo_utils.vocabulary import SIDES, VIEWS

TRUTHS = ((0, 0), (0, 1), (1, 0), (1, 1))  # whether the left and the right breast of a recombined exam are positive
N_RECOMBINED = 200  # exams per truth
N_DRAWS = 5  # of random gates and of permutations
SWITCH_AUC = 0.75  # 3/4 · 3/4 + (3/4 · 1/4 + 1/4 · 3/4) / 2: two scores, and equal ones count half
PAPER_DESIGN = "the paper's design"
FINDING_COLUMNS = "design runs flag_both miss_one share_min share_max low high left_out finding".split()


@dataclass(frozen=True)
class Breasts:
    """The breasts of E exams as `Features` has them.

    Attributes:
        groups: (E,) patients.
        positive: (E, 2) by side: 1 for the last class, 0 for another one, -1 without a label.
        seen: (E, 2), whether both views of the breast are present.
    """

    groups: np.ndarray
    positive: np.ndarray
    seen: np.ndarray


def breasts_of(run: RunResult, features: Features) -> Breasts:
    """Labels and patients of a run's exams, in the order of its features.

    Args:
        run: The run.
        features: Its encoded views.
    """
    task = main_task(run)
    table = labelled_breasts(run, task)
    place = {exam: i for i, exam in enumerate(features.exams)}
    positive = np.full((len(place), 2), -1)
    groups = np.array(features.exams, dtype=object)
    at = table["exam"].map(place).to_numpy(int)
    positive[at, table["side"].map(SIDES.index).to_numpy(int)] = table[task] == categories(run, task)[-1]
    groups[at] = table["group"].to_numpy()
    return Breasts(groups.astype(str), positive, features.present.unflatten(1, (2, 2)).all(2).numpy())


# --- recombination ----------------------------------------------------------------------------------------


def draw_pairs(breasts: Breasts, n: int, seed: int = 0) -> dict[tuple[int, int], np.ndarray]:
    """Draw pairs of exams of two patients: the left breast is taken from one, the right breast from the other.

    Args:
        breasts: The breasts; one is used if it has a label and both of its views.
        n: Pairs per truth, drawn with replacement.
        seed: Of the draws.

    Returns:
        Truth (see `TRUTHS`) -> (n, 2) positions of exams; a truth of which there is no pair is left out.
    """
    rng = np.random.default_rng(seed)
    usable = np.where(breasts.seen, breasts.positive, -1)
    pairs = {}
    for left, right in TRUTHS:
        possible = (usable[:, :1] == left) & (usable[:, 1] == right) & (breasts.groups[:, None] != breasts.groups)
        if possible.any():
            found = np.argwhere(possible)
            pairs[left, right] = found[rng.integers(0, len(found), n)]
    return pairs


def recombine(
    model: System,
    features: Features,
    breasts: Breasts,
    task: str,
    *,
    resamples: int,
    seed: int = 0,
    n: int = N_RECOMBINED,
) -> dict[str, Any]:
    """Predict exams whose breasts are of two patients, and compare with the same breasts in their own exams.

    Args:
        model: The run's system in eval mode.
        features: Its encoded views.
        breasts: The labels and patients of the same exams.
        task: The task to predict.
        resamples: Bootstrap resamples of the patients; a recombined exam counts as often as both of its patients do.
        seed: Of the draws and of the resamples.
        n: Exams per truth.

    Returns:
        Each an `Interval`: `auc`, of the breasts in their own exams; `recombined_auc`, `auc_change`; and shares of the
        recombined exams, where a breast is flagged if it is more likely positive than not: `both_seen`, of exams with
        two positive breasts, those with both flagged; `none_flagged_wrong`, of exams with none, those with any flagged;
        `one_right`, of exams with one, those with that one alone flagged. `<share>_alone`, a number, is what that share
        would be if each breast were flagged by itself, as often as breasts of its label are in their own exams. `n` is
        the number of exams per truth and `n_breasts` that of the breasts drawn from.
    """
    pairs = draw_pairs(breasts, n, seed)
    usable = breasts.seen & (breasts.positive >= 0)
    patients, member = np.unique(breasts.groups, return_inverse=True)
    drawn = group_weights(patients, resamples, seed)[:, member]  # (R, E), how often the patient of each exam is drawn

    as_is = _odds(model, features.views, features.present, task)  # (E, 2)
    exam = np.nonzero(usable)[0]
    value, resampled = _auc(breasts.positive[usable], as_is[usable], drawn[:, exam])
    found: dict[str, Any] = {"auc": percentile_interval(value, resampled)}
    if pairs:
        left, right = np.concatenate(list(pairs.values())).T
        truth = np.repeat(list(pairs), n, axis=0)  # (N, 2)
        views = torch.cat([features.views[left, :2], features.views[right, 2:]], dim=1)
        odds = _odds(model, views, torch.ones(len(views), len(VIEWS), dtype=torch.bool), task)
        weights = drawn[:, left] * drawn[:, right]
        again, resampled_again = _auc(truth.ravel(), odds.ravel(), np.repeat(weights, 2, axis=1))
        found["recombined_auc"] = percentile_interval(again, resampled_again)
        found["auc_change"] = percentile_interval(again - value, resampled_again - resampled)
        flagged, positives = odds > 0, truth.sum(1)
        own, labels = as_is[usable] > 0, breasts.positive[usable]
        sensitivity, false = (own[labels == k].mean() if (labels == k).any() else np.nan for k in (1, 0))
        for name, count, hit, alone in (
            ("both_seen", 2, flagged.all(1), sensitivity**2),
            ("none_flagged_wrong", 0, flagged.any(1), 1 - (1 - false) ** 2),
            ("one_right", 1, (flagged == truth).all(1), sensitivity * (1 - false)),
        ):
            of = positives == count
            patients_of = min(len(set(breasts.groups[exams[of]])) for exams in (left, right))
            found |= {name: _share(hit[of], weights[:, of], patients_of), f"{name}_alone": float(alone)}
    return found | {"n": n, "n_breasts": int(usable.sum())}


def _odds(model: System, views: torch.Tensor, present: torch.Tensor, task: str) -> np.ndarray:
    return log_odds(classify(model, views, present, 256)[0][task])


def _auc(positive: np.ndarray, odds: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    p = softmax(np.stack([np.zeros_like(odds), odds], axis=1))
    value = auc(positive, p)
    return value, np.full(len(weights), np.nan) if np.isnan(value) else weighted_auc(positive, p, weights)


def _share(hit: np.ndarray, weights: np.ndarray, patients: int) -> Interval:
    """The share of hits with Wilson's interval.

    Its effective number follows from the variance over the patients drawn with `weights` (R, n), and is at most the
    number of patients, as it is for a share of 0 or 1, which has no variance.
    """
    if not len(hit):
        return Interval(reason="no such exam")
    share, total = float(hit.mean()), weights.sum(1)
    variance = np.var(weights[total > 0] @ hit / total[total > 0]) if (total > 0).any() else 0.0
    n = min(patients, share * (1 - share) / variance) if variance > 0 else patients
    return Interval(share, *wilson_ends(share, n), method="Wilson")


# --- controls ---------------------------------------------------------------------------------------------


@torch.no_grad()
def controls(
    model: System, features: Features, breasts: Breasts, task: str, *, resamples: int, seed: int = 0
) -> dict[str, Interval]:
    """Replace the weights of the gate and see whether the AUC changes, over exams with all four views.

    Args:
        model: The run's system in eval mode, with a gate.
        features: Its encoded views.
        breasts: The labels and patients of the same exams.
        task: The task to predict.
        resamples: Bootstrap resamples.
        seed: Of the draws and of the resamples.

    Returns:
        `gate_auc`, with the trained weights; and the paired changes in AUC with a gate of new random weights
        (`random_change`), with the weights of another exam (`permuted_change`), each averaged over `N_DRAWS` draws, and
        with the mean weights of all exams divided evenly among the views that compete (`fixed_change`).
    """
    chosen = features.present.all(1)
    v, positive = features.views[chosen], breasts.positive[chosen.numpy()]
    known = positive >= 0
    groups = np.repeat(breasts.groups[chosen.numpy()][:, None], 2, axis=1)[known]
    present = torch.ones(len(v), len(VIEWS), dtype=torch.bool)
    alpha = model.fusion.weights(v, present)
    generator = torch.Generator().manual_seed(seed)

    def sample(weights: Sequence[torch.Tensor]) -> Sample:
        logits = [model.apply_heads(model.fusion.join(v, a))[task].numpy()[known] for a in weights]
        odds = [log_odds(values) for values in logits]
        return Sample(positive[known], np.stack([softmax(np.stack([0 * o, o], 1)) for o in odds]), groups)

    def random_gate() -> torch.Tensor:
        gate = copy.deepcopy(model.fusion)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            for layer in gate.mlp:
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
        return gate.weights(v, present)

    trained = sample([alpha])
    others = {
        "random": sample([random_gate() for _ in range(N_DRAWS)]),
        "permuted": sample([alpha[torch.randperm(len(alpha), generator=generator)] for _ in range(N_DRAWS)]),
        "fixed": sample([alpha.mean().expand_as(alpha)]),
    }
    bootstrap = {"resamples": resamples, "seed": seed}
    changes = {f"{k}_change": paired_difference(other, trained, "auc", **bootstrap) for k, other in others.items()}
    return {"gate_auc": interval(trained, "auc", **bootstrap)} | changes


# --- tables -----------------------------------------------------------------------------------------------


def recombination_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Examine each finished run that has `features.safetensors`, one row per run.

    Args:
        runs: The runs of the study.
        study: The study, for the settings of the bootstrap.

    Returns:
        run, design, task, n, n_breasts, and the measures of `recombine` and, with a gate, of `controls`;
        `<measure>_low` and `<measure>_high` are the ends of an interval.
    """
    options = bootstrap_settings(study)
    rows = []
    for run in with_views(runs):
        features, (_, model) = load_features(run.spec.folder / "features.safetensors"), load_run(run.spec.folder)
        breasts, task = breasts_of(run, features), main_task(run)
        row: dict[str, Any] = {"run": run.id, "design": _design(run), "task": task}
        found = recombine(model, features, breasts, task, **options)
        if model.fusion.gated:
            found |= controls(model, features, breasts, task, **options)
        for name, value in found.items():
            row |= {name: value}
            if isinstance(value, Interval):
                row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _design(run: RunResult) -> str:
    """How a run fuses its views, in words, with the remedy that it was trained by, if any."""
    fusion, share = run.spec.model.fusion, run.spec.training.recombine
    name = PAPER_DESIGN if fusion == "gated" else f"model.fusion={fusion}"
    return name + (f" and training.recombine={share:g}" if share else "")


def find_both_seen(table: pd.DataFrame) -> pd.DataFrame:
    """Find out whether both of two cancers are flagged, by how the runs fuse their views.

    A run flags both if the interval of `both_seen` lies above one half, and misses at least one if it lies below.

    Args:
        table: Made by `recombination_table`.

    Returns:
        One row per design: `runs`, `flag_both`, `miss_one` (numbers of runs); `share_min`, `share_max`; `low` and
        `high`, the outermost ends of the runs' intervals; `left_out`, the names of the runs without a diagnosis; and
        `finding`, a sentence, which is that it cannot be said unless the runs agree.
    """
    table = table.dropna(subset="both_seen") if "both_seen" in table else table[:0]
    rows = []
    for design, of_design in table.groupby("design", sort=False) if len(table) else ():
        known = of_design["task"] == "diagnosis"
        own, others = of_design[known], [run_title(run) for run in of_design.loc[~known, "run"]]
        if own.empty:
            continue
        n, both, miss = len(own), (own["both_seen_low"] > 0.5).sum(), (own["both_seen_high"] < 0.5).sum()
        row = {"design": design, "runs": n, "flag_both": both, "miss_one": miss}
        row |= {"share_min": own["both_seen"].min(), "share_max": own["both_seen"].max()}
        row |= {"low": own["both_seen_low"].min(), "high": own["both_seen_high"].max(), "left_out": "; ".join(others)}
        exams = "exams recombined to have two"
        answer = f"at least one of two cancers is missed in most {exams}"
        if both == n:
            answer = f"both of two cancers are flagged in most {exams}"
        elif miss < n:
            answer = f"it cannot be said whether both of two cancers are flagged in most {exams} "
            answer += f"({both} of {n} runs flag both, {miss} miss at least one)"
        row["finding"] = (
            f"With {design}, {answer}: both are flagged in {write_range(own['both_seen'], '.0%')} of them "
            f"({n} run{'s' * (n > 1)}; 95 % limits: {row['low']:.0%} to {row['high']:.0%})."
        )
        if others:
            row["finding"] += f" Left out, because not trained on the diagnosis: {row['left_out']}."
        rows.append(row)
    return pd.DataFrame(rows, columns=FINDING_COLUMNS)


def state_recombination(table: pd.DataFrame) -> list[str]:
    """State in sentences what recombination shows; `table` is made by `recombination_table`."""
    findings = list(find_both_seen(table)["finding"])
    table = table.dropna(subset=["auc_change", "both_seen"]) if "both_seen" in table else table[:0]
    if not len(table):
        return ["No run has exams that can be recombined."]
    known = table[table["task"] == "diagnosis"]  # another task flags the highest category, not a cancer
    table = known if len(known) else table
    lower, worst = table["auc_change_high"] < 0, table.loc[table["auc_change"].idxmin()]
    change = (
        f"In {lower.sum()} of {len(table)} runs, the AUC of the same breasts is lower in recombined exams, and the "
        f"interval of the change lies below 0. It changes most in {run_title(worst['run'])}: "
        f"by {worst['auc_change']:+.3f}."
    )
    if known.empty:
        return [*findings, change]
    both, alarms = known["both_seen_alone"], known["none_flagged_wrong"]
    alarmed = (
        f"{(alarms > 0.5).sum()} of {len(known)} runs flag a breast in more than half of the recombined exams without "
        f"a cancer: in {write_range(alarms, '.1%')} of them."
    )
    yardstick = (
        "If each breast were flagged by itself, with the sensitivity and specificity that the run has in the "
        f"breasts' own exams, both of two cancers would be flagged in {write_range(both, '.0%')} of exams, and a "
        f"breast in {write_range(known['none_flagged_wrong_alone'], '.0%')} of those without a cancer. A “which side?” "
        "switch, which scores one breast of each exam high and the other low, flags 0% and 100%, and has an AUC of "
        f"{SWITCH_AUC}."
    )
    return [*findings, alarmed, yardstick, change]


def state_weights(gates: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """State in sentences what the weights of gates are worth.

    Args:
        gates: Made by `gate_table`.
        table: Made by `recombination_table`.
    """
    sentences = []
    answer = gates.dropna(subset=["left_weight_auc"]) if "left_weight_auc" in gates else gates[:0]
    if len(answer):
        above, below = (answer["left_weight_auc_low"] > 0.5).sum(), (answer["left_weight_auc_high"] < 0.5).sum()
        sentences.append(
            "The share of the weight on the left views separates cancers of the left from those of the right breast "
            f"with an AUC of {write_range(answer['left_weight_auc'], '.2f')}. The interval lies above 0.5 in {above} "
            f"of {len(answer)} runs, whose gate favours the diseased breast, below 0.5 in {below}, whose gate favours "
            f"the other one, and includes 0.5 in {len(answer) - above - below}."
        )
    top = gates.dropna(subset=["top"]) if "top" in gates else gates[:0]
    if len(top):
        sentences.append(
            "The view with the most weight is the one whose removal changes the predictions most in "
            f"{write_range(top['top'], '.0%')} of the exams; the interval lies above the share of a view picked at "
            f"random in {(top['top_low'] > top['chance']).sum()} of {len(top)} runs. A view without weight cannot "
            "change them, so some agreement is certain."
        )
    fixed = table.dropna(subset=["fixed_change"]) if "fixed_change" in table else table[:0]
    if len(fixed):
        sentences.append(
            f"With equal weights for all views, the AUC changes by {write_range(fixed['fixed_change'], '+.3f')}; the "
            f"interval of the change lies below 0 in {(fixed['fixed_change_high'] < 0).sum()} of {len(fixed)} runs and "
            f"above 0 in {(fixed['fixed_change_low'] > 0).sum()}."
        )
    return sentences or ["No run has a gate and exams with four views."]
