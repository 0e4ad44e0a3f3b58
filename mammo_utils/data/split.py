"""Groups of patients who share an image, the split into parts by group, and the subsets of §4.2."""

from __future__ import annotations

from collections.abc import Iterable
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


def find_duplicates(cohort: Cohort, hashes: pd.DataFrame) -> pd.DataFrame:
    """Find images with the same pixels under two patients of the cohort: `sha256`, `exam`, `view`, `conflicting`.

    Duplicates conflict if the breast's diagnosis or BI-RADS is known under both patients and differs. `hashes` has
    `exam`, `view` and `sha256` of every image, used or not, see `Store.hashes`.
    """
    hashes = hashes[hashes["exam"].isin(cohort.exams.index)]  # excluded exams have hashes too
    shared = hashes.groupby("sha256")["exam"].transform("nunique") > 1
    found = hashes.loc[shared, ["sha256", "exam", "view"]].sort_values(["sha256", "exam"], ignore_index=True)
    found["conflicting"] = False
    for task in ("diagnosis", "birads"):
        labels = [cohort.exams.at[exam, f"{view[0]}_{task}"] for exam, view in found[["exam", "view"]].to_numpy()]
        known = pd.Series(labels, found.index, dtype=float).where(lambda label: label >= 0)  # absent contradicts none
        found["conflicting"] |= known.groupby(found["sha256"]).transform("nunique") > 1
    return found


def duplicate_views(hashes: pd.DataFrame) -> pd.DataFrame:
    """Find images with the same pixels under two views of one exam, at most one of which is right."""
    hashes = hashes.drop_duplicates(["exam", "view", "sha256"])
    again = hashes.duplicated(["exam", "sha256"], keep=False)
    return hashes.loc[again, ["exam", "view", "sha256"]].sort_values(["exam", "view"], ignore_index=True)


def patient_groups(cohort: Cohort, hashes: pd.DataFrame) -> pd.Series:
    """Group exams joined by identical images, directly or through others: exam -> first exam of its group.

    Images are identical if they have the same hash, whether they are used or not (see `find_duplicates`), or if they
    are a pair in the list of known errors.
    """
    exams = list(cohort.exams.index)
    listed = cohort.corrections.query("kind == 'duplicate' and applied")
    shared = hashes[hashes["sha256"].duplicated(keep=False)]
    first = shared.groupby("sha256")["exam"].transform("first")
    everyone = pd.Index(sorted({*exams, *hashes["exam"], *listed["exam"], *listed["value"]}))
    ends = [everyone.get_indexer([*a, *b]) for a, b in ((shared["exam"], listed["exam"]), (first, listed["value"]))]
    graph = coo_matrix((np.ones(len(ends[0])), ends), shape=(len(everyone), len(everyone)))
    component = connected_components(graph, directed=False)[1][everyone.get_indexer(exams)]
    return pd.Series(exams, exams, dtype=object).groupby(component).transform("first").rename("group")


@dataclass(frozen=True)
class Split:
    """A split of exams into parts that no group straddles.

    Attributes:
        kind: "paper", "nested" or "kfold", see `make_split`.
        seed: Seed of the draw.
        part: Exam -> "train", "validation" or "test".
        groups: Exam -> group of patients who share an image.
    """

    kind: str
    seed: int
    part: pd.Series
    groups: pd.Series

    @property
    def reported(self) -> str:
        """The part that is reported: the test part, or, as in the paper, the one that also chose the best epoch."""
        return "validation" if self.kind == "paper" else "test"

    @property
    def hash(self) -> str:
        """Hash of all values."""
        return hash_of(self._values())

    def _values(self) -> dict:
        exams = {exam: [self.part[exam], self.groups[exam]] for exam in sorted(self.part.index)}
        return {"kind": self.kind, "seed": self.seed, "exams": exams}

    def save(self, path: Path) -> None:
        """Write the split and its hash as JSON."""
        write_json(path, {"hash": self.hash, **self._values()})


def load_split(path: Path) -> Split:
    """Read a saved split. Raises DataError if it was edited or if a group is in two parts."""
    values = read_json(path)
    exams = pd.DataFrame.from_dict(values["exams"], orient="index", columns=["part", "group"])
    split = Split(values["kind"], values["seed"], exams["part"], exams["group"])
    if split.hash != values["hash"]:
        raise DataError(f"{display_path(path)} was changed by hand; delete it and run notebook 02 again.")
    _check_parts(split.part, split.groups, path)
    return split


def check_split(split: Split, cohort: Cohort, hashes: pd.DataFrame) -> None:
    """Check a split against the data it divides, without trusting the groups stored in it.

    Args:
        split: The split.
        cohort: The final cohort, which notebook 02 saves.
        hashes: `exam`, `view` and `sha256` of every image, see `Store.hashes`.

    Raises:
        DataError: Patients who share an image are in two parts, or an exam is in none: the split is of other data.
    """
    groups = patient_groups(cohort, hashes)
    parts = split.part.reindex(groups.index)
    _check_parts(parts, groups, Path("split.json"))
    if parts.isna().any():
        raise DataError(f"split.json is of other data: it lacks {parts.index[parts.isna()][0]}; run notebook 02 again.")


def _check_parts(part: pd.Series, groups: pd.Series, path: Path) -> None:
    leaks = part.groupby(groups).nunique()
    if (leaks > 1).any():
        group = leaks[leaks > 1].index[0]
        raise DataError(f"{display_path(path)} has {group} or its duplicate in two parts; run notebook 02 again.")


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
    """Split groups of exams into parts, stratified by the worst BI-RADS of the group and by whether all views exist.

    Args:
        exams: The exam table.
        groups: Exam -> group, see `patient_groups`.
        kind: "paper" (train and validation, §3), "nested" (also a test part, not used for any selection) or "kfold"
            (nested, with one of the folds as the test part: all folds together test every group once).
        seed: Seed of the draw.
        validation: Share of the groups for validation.
        test: Share of the groups for the test part of "nested".
        folds: Number of folds.
        fold: Number of the fold, from 0.

    Raises:
        ValueError: The kind is unknown, or no group is left for training.
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
    # Sorted before they are shuffled, so that the order of the exam table does not matter.
    shuffled = strata.sort_index().sample(frac=1, random_state=np.random.default_rng(seed))
    order = shuffled.sort_values(["birads", "complete"], kind="stable").index
    if kind == "kfold":
        numbers = _deal(order, dict.fromkeys(range(folds), 1 / folds))
        share = validation / (1 - 1 / folds)
        others = [group for group in order if numbers[group] != fold]
        part = dict.fromkeys(order, "test") | _deal(others, {"train": 1 - share, "validation": share})
    else:
        part = _deal(order, {"train": 1 - sum(shares[kind].values()), **shares[kind]})
    return Split(kind, seed, groups.map(part).rename("part"), groups)


def _deal(groups: Iterable[str], shares: dict) -> dict:
    """Deal groups, in their order, each to the part that lacks most of its share, so every stratum is divided alike."""
    parts, wanted = list(shares), np.array(list(shares.values()))
    dealt, chosen = np.zeros(len(shares)), {}
    for count, group in enumerate(groups, 1):
        part = int(np.argmax(wanted * count - dealt))
        dealt[part] += 1
        chosen[group] = parts[part]
    return chosen


def select_subset(exams: pd.DataFrame, subset: str, rule: str = "exams") -> pd.DataFrame:
    """Select the exams of a subset (§4.2) and set BI-RADS categories outside of it to -1.

    Args:
        exams: The exam table.
        subset: One of SUBSETS.
        rule: "exams" keeps exams with at least one breast in the subset, diagnoses included; "mask" keeps all exams.

    Raises:
        ValueError: The subset or the rule is unknown.
    """
    if subset not in SUBSETS or rule not in ("exams", "mask"):
        raise ValueError(f"There is no subset {subset!r} with the rule {rule!r}: {', '.join(SUBSETS)}; exams, mask.")
    exams = exams.copy()
    columns = [f"{side}_birads" for side in SIDES]
    inside = exams[columns].isin(SUBSETS[subset])
    exams[columns] = exams[columns].where(inside, -1).astype("int8")
    return exams[inside.any(axis=1)] if rule == "exams" else exams
