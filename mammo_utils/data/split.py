"""The split by patient, stratified, drawn once a study and saved with a hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mammo_utils.data.cohort import Cohort, DataError
from mammo_utils.io import display_path, read_json, write_json
from mammo_utils.provenance import hash_of
from mammo_utils.vocabulary import SIDES, SUBSETS, VIEWS


@dataclass(frozen=True)
class Split:
    """part: exam -> "train", "validation" or "test"; groups: exam -> group (patients that share an image).

    With "paper" the best epoch is chosen on the part that is reported, validation, as the paper did, which
    flatters; with "nested" and "kfold" the part test has chosen nothing.
    """

    kind: str
    seed: int
    part: pd.Series
    groups: pd.Series

    @property
    def reported(self) -> str:
        return "validation" if self.kind == "paper" else "test"

    @property
    def hash(self) -> str:
        return hash_of(self._values())

    def _values(self) -> dict:
        exams = {exam: [self.part[exam], self.groups[exam]] for exam in sorted(self.part.index)}
        return {"kind": self.kind, "seed": self.seed, "exams": exams}

    def save(self, path: Path) -> None:
        write_json(path, {"hash": self.hash, **self._values()})


def load_split(path: Path) -> Split:
    """Read a saved split. Raises DataError where it was edited or where a patient is in two parts."""
    values = read_json(path)
    exams = pd.DataFrame.from_dict(values["exams"], orient="index", columns=["part", "group"])
    split = Split(values["kind"], values["seed"], exams["part"], exams["group"])
    if split.hash != values["hash"]:
        raise DataError(
            f"{display_path(path)} does not match its hash: it was changed by hand; delete it and run notebook 02."
        )
    leaks = exams.groupby("group")["part"].nunique()
    if (leaks > 1).any():
        raise DataError(
            f"{display_path(path)} has {leaks[leaks > 1].index[0]} in two parts; delete it and run notebook 02."
        )
    return split


def check_split(split: Split, cohort: Cohort, index: pd.DataFrame) -> None:
    """Hold a split against the data that it is to divide: the cohort whose images can be used, and `index` as
    :func:`twins` takes it. What the file says of groups is not believed.

    Raises DataError where patients who share an image are in two parts, or where an exam is in no part and no twin in
    conflict: the split was drawn from other data.
    """
    groups = patient_groups(cohort, index, "keep")
    parts = split.part.reindex(groups.index)
    leaks = parts.groupby(groups).nunique()
    if (leaks > 1).any():
        raise DataError(f"split.json has {leaks[leaks > 1].index[0]} or a twin in two parts; run notebook 02 again.")
    unknown = parts.index[parts.isna()]
    if len(unknown):
        raise DataError(f"split.json does not have {unknown[0]}, so it is of other data; run notebook 02 again.")


def find_duplicates(cohort: Cohort, index: pd.DataFrame) -> pd.DataFrame:
    """Images with the same pixels under two patients: sha256, exam, view, conflicting (labels differ).

    `index`: exam, view, sha256, as Store.hashes has them. Twins conflict where one breast's diagnosis or BI-RADS is
    known under both IDs and not the same.
    """
    index = index[index["exam"].isin(cohort.exams.index)]  # also exams that are not used, or left since, have a hash
    shared = index.groupby("sha256")["exam"].transform("nunique") > 1
    found = index.loc[shared, ["sha256", "exam", "view"]].sort_values(["sha256", "exam"], ignore_index=True)
    exams = cohort.exams

    def labels(row: dict) -> tuple:
        side = row["view"][0]
        return exams.at[row["exam"], f"{side}_diagnosis"], exams.at[row["exam"], f"{side}_birads"]

    pairs = pd.DataFrame(map(labels, found.to_dict("records")), index=found.index, columns=["diagnosis", "birads"])
    known = pairs.where(pairs >= 0)  # an absent label contradicts none
    found["conflicting"] = (known.groupby(found["sha256"]).transform("nunique") > 1).any(axis=1)
    return found


def duplicate_views(index: pd.DataFrame) -> pd.DataFrame:
    """Images with the same pixels on two views of one exam, which cannot both be right: exam, view, sha256."""
    index = index.drop_duplicates(["exam", "view", "sha256"])
    again = index.duplicated(["exam", "sha256"], keep=False)
    return index.loc[again, ["exam", "view", "sha256"]].sort_values(["exam", "view"], ignore_index=True)


def patient_groups(cohort: Cohort, index: pd.DataFrame, conflicts: str = "exclude") -> pd.Series:
    """exam -> group: the first exam among those joined by identical images, directly or through others.

    Twins are found by their pixels, those of images that are not used too (`index`, see :func:`twins`), and in the list
    of known errors (``cohort.corrections``). Exams with twins in conflict are left out (``conflicts="exclude"``) or
    stay in one group ("keep").
    """
    exams = list(cohort.exams.index)
    listed = cohort.corrections.query("kind == 'duplicate' and applied")
    everyone = sorted({*exams, *index["exam"], *listed["exam"], *listed["value"]})
    position = {exam: i for i, exam in enumerate(everyone)}
    shared = index[index["sha256"].duplicated(keep=False)]
    first = shared.groupby("sha256")["exam"].transform("first")
    pairs = [*zip(shared["exam"], first, strict=True), *zip(listed["exam"], listed["value"], strict=True)]
    edges = np.array([[position[one], position[other]] for one, other in pairs], int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(edges.shape[1]), tuple(edges)), shape=(len(everyone), len(everyone)))
    component = connected_components(graph, directed=False)[1]
    names = pd.Series(exams, exams, dtype=object)
    of = component[[position[exam] for exam in exams]]
    groups = names.groupby(of).transform("first").rename("group")
    if conflicts == "exclude":
        found = find_duplicates(cohort, index)
        out = set(found.loc[found["conflicting"], "exam"])
        groups = groups[~groups.isin(set(groups[groups.index.isin(out)]))]
    return groups


def make_split(
    exams: pd.DataFrame,
    groups: pd.Series,
    *,
    kind: str = "nested",
    seed: int = 0,
    validation: float = 0.2,
    test: float = 0.2,
    folds: int = 5,
    fold: int = 0,
) -> Split:
    """Split groups of exams into parts: "paper" train and validation, "nested" and "kfold" a test part as well.

    `validation` and `test` are shares of the groups. Groups of the same stratum (worst BI-RADS of the group,
    all four views or not) are shuffled and dealt out one by one to the part that lacks most, so that each part
    has its share of each stratum. "kfold" deals out `folds` parts alike, the one numbered `fold` is the test part,
    and validation is dealt out of the others: over all folds every group is tested once. Raises ValueError for an
    unknown kind or shares that leave nothing to train on.
    """
    shares = {"paper": {"validation": validation}, "nested": {"validation": validation, "test": test}}
    shares["kfold"] = {"validation": validation, "test": 1 / folds}
    if kind not in shares or sum(shares[kind].values()) >= 1 or not 0 <= fold < folds:
        raise ValueError(
            f"A split {kind!r} with validation {validation}, test {test} and fold {fold} of {folds} is not possible."
        )
    exams = exams.loc[groups.index]
    strata = pd.DataFrame(
        {
            "birads": exams[[f"{side}_birads" for side in SIDES]].max(axis=1).groupby(groups).max(),
            "complete": exams[list(VIEWS)].all(axis=1).groupby(groups).max(),
        }
    )
    random = np.random.default_rng(seed)
    order = strata.sort_index().sample(frac=1, random_state=random).sort_values(["birads", "complete"], kind="stable")
    chosen = {}
    if kind == "kfold":
        of = _deal(order.index, dict.fromkeys(range(folds), 1 / folds))
        chosen = {group: "test" for group in order.index if of[group] == fold}
        left = order.index[[of[group] != fold for group in order.index]]
        share = validation / (1 - 1 / folds)
        chosen |= _deal(left, {"train": 1 - share, "validation": share})
    else:
        chosen = _deal(order.index, {"train": 1 - sum(shares[kind].values()), **shares[kind]})
    return Split(kind, seed, groups.map(chosen).rename("part"), groups)


def _deal(groups: pd.Index, shares: dict) -> dict:
    """group -> part: each, in their order, to the part that lacks most of its share."""
    parts, wanted = list(shares), np.array(list(shares.values()))
    dealt, chosen = np.zeros(len(shares)), {}
    for count, group in enumerate(groups, 1):
        part = int(np.argmax(wanted * count - dealt))
        dealt[part] += 1
        chosen[group] = parts[part]
    return chosen


# --- subsets (§4.2) ------------------------------------------------------------------------------------


def select_subset(exams: pd.DataFrame, subset: str, rule: str = "exams") -> pd.DataFrame:
    """The rows of the exam table that a subset keeps; BI-RADS outside of it becomes -1.

    rule "exams" keeps an exam with at least one breast in the subset, its diagnosis labels with it; "mask"
    keeps every exam. Raises ValueError for a subset or a rule that does not exist.
    """
    if subset not in SUBSETS or rule not in ("exams", "mask"):
        raise ValueError(f"There is no subset {subset!r} with the rule {rule!r}: {', '.join(SUBSETS)}; exams, mask.")
    exams = exams.copy()
    columns = [f"{side}_birads" for side in SIDES]
    inside = exams[columns].isin(SUBSETS[subset])
    exams[columns] = exams[columns].where(inside, -1).astype("int8")
    return exams[inside.any(axis=1)] if rule == "exams" else exams
