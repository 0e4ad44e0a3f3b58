"""What the tables of notebooks 05 and 07 amount to, as sentences for their ends and for the study's page."""

from __future__ import annotations

import pandas as pd

from mammo_utils.evaluation.calibration import SCALINGS
from mammo_utils.evaluation.comparisons import CORRECTIONS
from mammo_utils.evaluation.intervals import LEVEL
from mammo_utils.evaluation.operating import SPECIFICITIES
from mammo_utils.evaluation.readable import name_system, write_range
from mammo_utils.vocabulary import SIDES, SUBSET_TITLES, SUBSETS, TASK_TITLES

NAMED = 5  # subgroups


def summarise_results(
    results: pd.DataFrame, compared: pd.DataFrame, levels: pd.DataFrame, stated: pd.DataFrame
) -> list[str]:
    """Summarise shortcuts, comparisons, trainings and levels.

    Args:
        results: The result of `tables.results_table`.
        compared: The result of `comparisons.compare_systems`.
        levels: The result of `levels.levels_table`.
        stated: The result of `comparisons.statements`.
    """
    sentences = summarise_shortcuts(stated)
    if tests := int(compared["p"].notna().sum()):
        apart = int(compared["answer"].str.startswith("told apart").sum())
        alone = int((compared["corrected_by"] == CORRECTIONS[1]).sum())
        corrected = compared["p_holm"].fillna(compared["p"]), compared["p_bh"]  # Holm's leaves a lone p as it is
        holm, overall = (int((p < 1 - LEVEL).sum()) for p in corrected)
        sentences.append(
            f"{apart} of {tests} comparisons of two systems are told apart at the 5 % level. Each is corrected by "
            f"Holm's method with the others of its subset, task and metric; {alone} have no others there and are "
            "corrected with all comparisons of the study (Benjamini and Hochberg). With Holm's method alone it would "
            f"be {holm}, with Benjamini and Hochberg's alone {overall}."
        )
    if len(results) and (alone := (results["n_seeds"] == 1)).any():
        key = ["subset", "task_mode", "system"]
        once, every = (len(rows[key].drop_duplicates()) for rows in (results[alone], results))
        sentences.append(
            f"{once} of {every} systems were trained once, so their spread over trainings is unknown. "
            "A system with one task or another subset counts as one of its own."
        )
    diagnosis = levels[levels["task"] == "diagnosis"].set_index(["subset", "task_mode", "system"])
    breasts = diagnosis[diagnosis["level"] == "breast"]["value"]
    exams = diagnosis[(diagnosis["level"] == "exam") & (diagnosis["rule"] == "max")]
    if len(exams):
        rules = diagnosis[diagnosis["level"] == "exam"].groupby("rule", sort=False)["value"]
        lower = [f"{(v < breasts.reindex(v.index)).sum()} of {len(v)} systems (rule {rule})" for rule, v in rules]
        negative = pd.Series([int(counts.split(" / ")[0]) for counts in exams["n_by_class"]])
        sentences.append(
            f"By exam, the AUC of the diagnosis is lower than by breast in {', '.join(lower)}. "
            f"The difference is not tested; it rests on {write_range(negative, 'd')} exams without cancer."
        )
    return sentences


def summarise_shortcuts(stated: pd.DataFrame) -> list[str]:
    """Count for each task the systems that are told apart from the best shortcut and better, and name the others.

    Args:
        stated: The result of `comparisons.statements`.
    """
    sentences = []
    for task, rows in stated[stated["best_shortcut"] != ""].groupby("task", sort=False):
        ahead = rows["surely_ahead"].eq(True)
        names = [name_system(row.system, row.task_mode, row.subset) for row in rows[~ahead].itertuples()]
        others = f". Not: {'; '.join(names)}" if names else ""
        sentences.append(
            f"{TASK_TITLES[task]}: {ahead.sum()} of {len(rows)} systems are told apart from the best shortcut, and "
            f"better{others}."
        )
    return sentences


def state_sides(results: pd.DataFrame) -> list[str]:
    """State for each task in how many systems the AUC of left breasts is above that of right ones, and by how much.

    Args:
        results: The result of `tables.results_table`.
    """
    areas = results[(results["metric"] == "auc") & results["side"].isin(SIDES)].dropna(subset="value")
    if areas.empty:
        return []
    key = ["subset", "task_mode", "system", "task"]
    wide = areas.pivot(index=key, columns="side", values="value").dropna()
    gaps = dict(tuple((wide[SIDES[0]] - wide[SIDES[1]]).groupby("task")))
    return [
        f"{title}: the AUC of left breasts is above that of right ones in {(gaps[task] > 0).sum()} of "
        f"{len(gaps[task])} systems; the difference is {write_range(gaps[task], '+.3f')}."
        for task, title in TASK_TITLES.items()
        if task in gaps
    ]


def summarise_decisions(
    calibration: pd.DataFrame, points: pd.DataFrame, conformal: pd.DataFrame, subgroups: pd.DataFrame
) -> list[str]:
    """Summarise calibration, operating points, conformal sets and subgroups.

    Args:
        calibration: The result of `calibration.calibration_table`.
        points: The result of `operating.operating_table`.
        conformal: The result of `conformal.conformal_table`.
        subgroups: The result of `subgroups.subgroup_table`.
    """
    sentences = []
    scaled = calibration[(calibration["scaling"] == SCALINGS[-1]) & calibration["log_loss_change"].notna()]
    if len(scaled):
        helped, harmed = ((scaled["helped"] == answer).sum() for answer in ("yes", "no, worse"))
        sentences.append(
            "Scaling the probabilities by a temperature and an intercept changes the log loss of the diagnosis by "
            f"{write_range(scaled['log_loss_change'], '+.3f')}: better in {helped} of {len(scaled)} trainings, worse "
            f"in {harmed}, and not told apart from 0 in the others (5 % level, not corrected)."
        )
    own = points[(points["aim"] == SPECIFICITIES[0]) & points["specificity"].notna()]
    for name in ("specificity", "sensitivity") if len(own) else ():
        levels = [
            f"{write_range(rows[name], '.3f')} by {level} ({len(rows)} trainings, 95 % limits "
            f"{rows[f'{name}_low'].min():.3f} to {rows[f'{name}_high'].max():.3f})"
            for level, rows in own.groupby("level", sort=False)
        ]
        sentences.append(
            f"The threshold with a specificity of {SPECIFICITIES[0]:.2f} on validation has, on the reported part, a "
            f"{name} of {' and '.join(levels)}."
        )
    for subset, rows in conformal[conformal["category"] == "all"].groupby("subset", sort=False):
        sentences.append(
            f"{SUBSET_TITLES[subset]}: sets of BI-RADS categories aimed at 90 % contain the label of "
            f"{write_range(rows['coverage'], '.1%')} of the breasts; on average they hold "
            f"{write_range(rows['mean_size'], '.2f')} of {len(SUBSETS[subset])} categories ({len(rows)} "
            f"training{'s' * (len(rows) > 1)}, {rows['n_breasts'].max()} breasts)."
        )
    if tests := int(subgroups["p"].notna().sum()):
        sentences.append(summarise_subgroups(subgroups[subgroups["answer"] == "told apart"], tests))
    return sentences


def summarise_subgroups(apart: pd.DataFrame, tests: int) -> str:
    """Count the subgroups that are told apart, and name up to five of them.

    Args:
        apart: Their rows in the result of `subgroups.subgroup_table`.
        tests: Number of all tests.
    """
    text = f"In {len(apart)} of {tests} tests, a subgroup is told apart from the other breasts (each training's tests "
    text += "corrected together, Benjamini and Hochberg)"
    named = [
        f"{row.attribute} {row.group} of {name_system(row.system, row.task_mode, row.subset)}, seed {row.seed}: "
        f"{row.measure} {row.value:.3f} ({row.low:.3f} to {row.high:.3f}; {row.n_patients} patients), "
        f"difference from the others {row.difference:+.3f}"
        for row in apart.itertuples()
    ]
    return f"{text}: {'; '.join(named)}." if 0 < len(named) <= NAMED else f"{text}."
