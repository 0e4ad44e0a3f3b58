import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mammo_utils.data.cohort import DataError, table
from mammo_utils.data.split import find_duplicates, load_split, make_split, patient_groups


@pytest.fixture
def exams():
    random = np.random.default_rng(0)
    n = 200
    frame = pd.DataFrame(index=[f"S1-{i:04d}" for i in range(n)])
    for side in "LR":
        frame[f"{side}_birads"] = random.choice([-1, 1, 2, 3, 4, 5], n, p=[0.2, 0.4, 0.05, 0.1, 0.1, 0.15])
        frame[f"{side}_diagnosis"] = np.where(frame[f"{side}_birads"] > 3, 1, 0)
    four = random.random(n) < 0.5
    return frame.assign(L_CC=True, L_MLO=True, R_CC=four, R_MLO=four)


def make_cohort(exams):
    return SimpleNamespace(exams=exams, corrections=table("corrections", []))


def make_hashes(exams, same=()):
    """One image per exam, each with its own pixels, except that each group of exams in `same` shares one."""
    index = pd.DataFrame({"exam": exams.index, "view": "L_CC", "sha256": [f"{i}" for i in range(len(exams))]})
    for number, names in enumerate(same):
        index.loc[index["exam"].isin(names), "sha256"] = f"same{number}"
    return index


def test_shares_strata_and_determinism(exams):
    groups = patient_groups(make_cohort(exams), make_hashes(exams))
    split = make_split(exams, groups, kind="nested", seed=3, validation=0.2, test=0.3)
    counts = split.part.value_counts()
    assert (counts["test"], counts["validation"], counts["train"]) == (60, 40, 100)
    worst = exams[["L_birads", "R_birads"]].max(axis=1)
    for stratum in (worst == 5, worst == 1, exams["R_CC"]):
        share = (split.part[stratum] == "test").mean()
        assert abs(share - 0.3) < 0.05, "each stratum is divided in proportion"
    shuffled = exams.sample(frac=1, random_state=1)
    again = make_split(shuffled, groups.loc[shuffled.index], kind="nested", seed=3, validation=0.2, test=0.3)
    assert again.hash == split.hash, "the order of the exams does not matter"
    assert make_split(exams, groups, kind="nested", seed=4, validation=0.2, test=0.3).hash != split.hash
    assert split.reported == "test"
    paper = make_split(exams, groups, kind="paper", seed=0, validation=0.2, test=0.2)
    assert paper.part.value_counts().to_dict() == {"train": 160, "validation": 40} and paper.reported == "validation"


def test_duplicates_are_joined_through_others_and_stay_in_one_part(exams):
    a, b, c, d = exams.index[:4]
    exams.loc[[a, b, c, d], ["L_birads", "L_diagnosis"]] = [1, 0]
    index = pd.concat([make_hashes(exams, [(a, b)]), pd.DataFrame({"exam": [b, c], "view": "L_MLO", "sha256": "more"})])
    groups = patient_groups(make_cohort(exams), index.reset_index(drop=True))
    assert groups[a] == groups[b] == groups[c] == a and groups[d] == d
    for seed in range(20):
        part = make_split(exams, groups, seed=seed).part
        assert part[a] == part[b] == part[c]


def test_conflicting_duplicates_are_found_and_in_one_group(exams):
    a, b = exams.index[:2]
    exams.loc[a, ["L_birads", "L_diagnosis"]] = [1, 0]
    exams.loc[b, ["L_birads", "L_diagnosis"]] = [5, 1]
    index = make_hashes(exams, [(a, b)])
    assert find_duplicates(make_cohort(exams), index)["conflicting"].tolist() == [True, True]
    groups = patient_groups(make_cohort(exams), index)
    assert groups[a] == groups[b]


@pytest.mark.parametrize("task", ["birads", "diagnosis"])
def test_one_label_is_enough_for_a_conflict(exams, task):
    a, b = exams.index[:2]
    exams.loc[[a, b], ["L_birads", "L_diagnosis"]] = [4, 1]
    exams.loc[b, f"L_{task}"] = {"birads": 5, "diagnosis": 0}[task]
    index = make_hashes(exams, [(a, b)])
    assert find_duplicates(make_cohort(exams), index)["conflicting"].all()
    exams.loc[b, f"L_{task}"] = -1
    assert not find_duplicates(make_cohort(exams), index)["conflicting"].any(), "an absent label contradicts none"


def test_within_a_birads_category_exams_with_and_without_four_views_are_divided_alike(exams):
    """Without this stratum the share of exams with four views would vary with the seed."""
    exams[["L_birads", "R_birads"]] = 1
    groups = patient_groups(make_cohort(exams), make_hashes(exams))
    for seed in range(10):
        split = make_split(exams, groups, kind="nested", seed=seed, validation=0.2, test=0.3)
        for part, share in (("train", 0.5), ("validation", 0.2), ("test", 0.3)):
            for stratum in (exams["R_CC"], ~exams["R_CC"]):
                assert abs((split.part[stratum] == part).sum() - share * stratum.sum()) <= 1.5


def test_a_saved_split_comes_back_and_refuses_edits_and_leaks(exams, tmp_path):
    split = make_split(exams, patient_groups(make_cohort(exams), make_hashes(exams, [exams.index[:2]])))
    path = tmp_path / "split.json"
    split.save(path)
    loaded = load_split(path)
    assert loaded.hash == split.hash and loaded.part.loc[split.part.index].equals(split.part)
    values = json.loads(path.read_text())
    first = exams.index[0]
    values["exams"][first][0] = "test" if values["exams"][first][0] == "train" else "train"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="changed by hand"):
        load_split(path)
    parts = loaded.part.copy()
    parts[first] = "test" if parts[first] == "train" else "train"
    type(loaded)(loaded.kind, loaded.seed, parts, loaded.groups).save(path)
    with pytest.raises(DataError, match=f"has {first} or its duplicate in two parts"):
        load_split(path)


def test_impossible_splits_are_refused(exams):
    groups = patient_groups(make_cohort(exams), make_hashes(exams))
    with pytest.raises(ValueError, match="not possible"):
        make_split(exams, groups, kind="nested", validation=0.6, test=0.4)
    with pytest.raises(ValueError, match="'other'"):
        make_split(exams, groups, kind="other")


def test_folds_test_every_group_once(exams):
    groups = patient_groups(make_cohort(exams), make_hashes(exams, [exams.index[:2]]))
    splits = [make_split(exams, groups, kind="kfold", seed=3, folds=4, fold=fold) for fold in range(4)]
    tested = [set(split.part.index[split.part == "test"]) for split in splits]
    assert set.union(*tested) == set(groups.index) and sum(map(len, tested)) == len(groups)
    worst = exams.loc[groups.index, ["L_birads", "R_birads"]].max(axis=1)
    for split, test in zip(splits, tested, strict=True):
        assert split.reported == "test" and not split.part.groupby(split.groups).nunique().gt(1).any()
        shares = split.part.value_counts(normalize=True)
        assert abs(shares["test"] - 0.25) < 0.05 and abs(shares["validation"] - 0.2) < 0.05
        for category, share in worst.value_counts(normalize=True).items():
            assert abs((worst[list(test)] == category).mean() - share) < 0.1, category
    assert len({split.hash for split in splits}) == 4
    with pytest.raises(ValueError, match="fold 4 of 4"):
        make_split(exams, groups, kind="kfold", folds=4, fold=4)
