"""What the tables of notebooks 05 and 07 amount to, as sentences for their ends and for the study's page."""

from __future__ import annotations

import pandas as pd

from mammo_utils.evaluation.calibration import SCALINGS
from mammo_utils.evaluation.operating import SPECIFICITIES


def summarise_results(results: pd.DataFrame, compared: pd.DataFrame, levels: pd.DataFrame) -> list[str]:
    """Summarise comparisons, trainings and levels.

    Args:
        results: The result of `tables.results_table`.
        compared: The result of `comparisons.compare_systems`.
        levels: The result of `levels.levels_table`.
    """
    sentences = []
    if tests := int(compared["p_holm"].notna().sum()):
        apart = int(compared["answer"].str.startswith("told apart").sum())
        overall = int((compared["p_bh"] < 0.05).sum())
        sentences.append(
            f"{apart} of {tests} comparisons are told apart (Holm's correction within a subset, task and metric); "
            f"{overall} if all of them are corrected together (Benjamini and Hochberg). Level 5 %."
        )
    if len(results) and (alone := (results["n_seeds"] == 1)).any():
        systems = results.loc[alone, ["subset", "task_mode", "system"]].drop_duplicates()
        sentences.append(f"Systems trained once: {len(systems)}; the spread of a training is not in their intervals.")
    diagnosis = levels[levels["task"] == "diagnosis"].set_index(["subset", "task_mode", "system"])
    breasts = diagnosis[diagnosis["level"] == "breast"]["value"]
    exams = diagnosis[(diagnosis["level"] == "exam") & (diagnosis["rule"] == "max")]
    if len(exams):
        lower = int((exams["value"] < breasts).sum())
        negative = min(int(counts.split(" / ")[0]) for counts in exams["n_by_class"])
        sentences.append(
            f"The AUC of the diagnosis by exam is lower than by breast for {lower} of {len(exams)} systems; "
            f"it rests on {negative} exams without cancer."
        )
    return sentences


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
            f"Temperature and intercept improve the log loss of {helped} of {len(scaled)} trainings and worsen that of "
            f"{harmed}; of the others the change is not told apart from 0."
        )
    own = (points["level"] == "breast") & (points["aim"] == SPECIFICITIES[0]) & points["specificity"].notna()
    for name in ("specificity", "sensitivity") if own.any() else ():
        low, high = points.loc[own, name].min(), points.loc[own, name].max()
        sentences.append(
            f"A threshold with a specificity of {SPECIFICITIES[0]:.2f} on validation has a {name} of {low:.3f} to "
            f"{high:.3f} on the reported part."
        )
    every = conformal[conformal["category"] == "all"]["coverage"]
    if len(every):
        sentences.append(f"BI-RADS sets aimed at 90 % contain the label of {every.min():.1%} to {every.max():.1%}.")
    if tests := int(subgroups["p"].notna().sum()):
        apart = int((subgroups["answer"] == "told apart").sum())
        sentences.append(f"{apart} of {tests} subgroups are told apart from the other breasts of their training.")
    return sentences
