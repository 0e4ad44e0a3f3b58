"""Draws the patients of the synthetic release: labels, views, densities and findings, as frequent as in the real one.

The margins are exact: 826 of 1,775 patients have four views; 2,601 breasts are 1,167 Malignant, 1,054 Normal,
215 Benign, 140 Invisible and 25 Exclusion; BI-RADS 1 to 5 have 1,055, 79, 252, 399 and 665 breasts, and 151 are blank.
The pairs of CMMD's own labels within a patient (729 Malignant beside an unlabelled breast, 61 Benign + Benign,
30 Benign + Malignant, 6 Malignant + Malignant; alone 545 Malignant and 404 Benign) are counted from its clinical sheet.
The cells inside these margins are assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator

from mammo_utils.vocabulary import SIDES

PROJECTIONS = ("CC", "MLO")
MLO_LIFT = (0.9, 0.3)  # weights of `up` and `lateral` in the MLO view, which looks from the upper inner side
FOUR_VIEWS, PATIENTS = 826, 1775
LEFT_ALONE = 988 / 1872  # of CMMD's labelled breasts

# (class in TOMPEI-CMMD, label in CMMD) of each breast: number of patients; "" where CMMD has no row
ONE_BREAST = {
    (("Malignant", "Malignant"),): 480,
    (("Invisible", "Malignant"),): 62,
    (("Exclusion", "Malignant"),): 3,
    (("Normal", "Benign"),): 236,
    (("Benign", "Benign"),): 160,
    (("Exclusion", "Benign"),): 8,
}
TWO_BREASTS = {
    (("Malignant", "Malignant"), ("Normal", "")): 641,
    (("Malignant", "Malignant"), ("Benign", "")): 5,
    (("Malignant", "Malignant"), ("Exclusion", "")): 3,
    (("Invisible", "Malignant"), ("Normal", "")): 75,
    (("Exclusion", "Malignant"), ("Normal", "")): 5,
    (("Normal", "Benign"), ("Normal", "Benign")): 22,
    (("Normal", "Benign"), ("Benign", "Benign")): 26,
    (("Benign", "Benign"), ("Benign", "Benign")): 8,
    (("Normal", "Benign"), ("Exclusion", "Benign")): 5,
    (("Normal", "Benign"), ("Malignant", "Malignant")): 19,
    (("Benign", "Benign"), ("Malignant", "Malignant")): 8,
    (("Normal", "Benign"), ("Invisible", "Malignant")): 2,
    (("Normal", "Benign"), ("Exclusion", "Malignant")): 1,
    (("Malignant", "Malignant"), ("Malignant", "Malignant")): 5,
    (("Malignant", "Malignant"), ("Invisible", "Malignant")): 1,
}
BIRADS = {  # number of breasts with BI-RADS 1 to 5 and blank
    "Normal": (1043, 11, 0, 0, 0, 0),
    "Benign": (0, 62, 112, 36, 5, 0),
    "Malignant": (0, 6, 139, 362, 660, 0),
    "Invisible": (0, 0, 0, 0, 0, 140),
    "Exclusion": (12, 0, 1, 1, 0, 11),
}
DENSITY = {"heterogeneous dense": 1671, "extremely dense": 551, "scattered": 340, "fatty": 30}
# number of CMMD's rows, benign and malignant together: a kind of finding must not give the label away
ABNORMALITY = {"mass": 1149, "calcification": 262, "both": 461}
SUBTYPE = {"Luminal B": 376, "Luminal A": 152, "HER2-enriched": 135, "triple negative": 86}
AGE = {"Malignant": (49.4, 10.7), "Benign": (42.6, 9.8)}  # years: mean and standard deviation of CMMD's rows
CORES = {"mass": 88, "FAD": 7, "dist": 5}
BENIGN_MASSES = {"FA": 60, "mass": 30, "lipoma": 10}  # names only: they are drawn as a mass is
SUSPICION = {2: 0.1, 3: 0.45, 4: 0.85, 5: 1.0}  # by BI-RADS
VISIBLE = ("both", "one", "comparing")


@dataclass(frozen=True)
class Settings:
    """What a release is drawn with; its pixels and UIDs are a function of these and of the exam's number.

    Attributes:
        rows: Height of an image in pixels, at least 32 (the real detector: 2294); always 215.8 mm.
        columns: Width of an image in pixels, at least 32 (the real detector: 1914); always 180.1 mm.
        seed: Seed of all random numbers.
        contrast: Factor of the grey levels of findings and decoys; 0 makes them invisible.
        noise: Quantum noise; 1 is a standard deviation of two grey levels.
        difficulty: How faint findings and decoys are, 0 (plain) to 1 (half of them are invisible); see `appearances`.
        visible: What shows a cancer: `both` views, `one` of them, or only `comparing` the two breasts.
        bilateral: Share of four-view exams with cancer in both breasts; None: as in the real release, 0.6 %.
        null: Whether the findings are independent of the labels.
    """

    rows: int = 288
    columns: int = 240
    seed: int = 0
    contrast: float = 1.0
    noise: float = 1.0
    difficulty: float = 0.0
    visible: str = "both"
    bilateral: float | None = None
    null: bool = False


@dataclass(frozen=True)
class Finding:
    """One lesion of a breast.

    Attributes:
        kind: mass, calc, dist, FA, FAD or lipoma, as in the release.
        suspicion: 0 (clearly benign) to 1 (clearly cancer): the share of its strands that are radial.
        radius: Of its core, in mm; its strands reach four times as far.
        position: (depth, lateral, up). Depth is 0 at the chest wall and 1 at the nipple, the others are in -1..1.
    """

    kind: str
    suspicion: float
    radius: float
    position: tuple[float, float, float]


@dataclass(frozen=True)
class Breast:
    """The labels and findings of one breast.

    Attributes:
        side: L or R.
        classification: Class in TOMPEI-CMMD.
        cmmd: Label in CMMD, "" where it has none.
        birads: BI-RADS category 1 to 5, None where blank.
        density: Density in the workbook, "" where blank.
        abnormality: mass, calcification or both.
        subtype: Molecular subtype of a cancer, None where blank.
        findings: The lesions of the breast.
        decoys: What is drawn in a breast without lesions: the same structures, arranged harmlessly.
    """

    side: str
    classification: str
    cmmd: str
    birads: int | None
    density: str
    abnormality: str
    subtype: str | None
    findings: tuple[Finding, ...]
    decoys: tuple[Finding, ...] = ()

    @property
    def structures(self) -> tuple[Finding, ...]:
        """What is drawn: the findings or, in a breast without any, the decoys."""
        return self.findings or self.decoys


@dataclass(frozen=True)
class Exam:
    """One patient.

    Attributes:
        number: Position in the release, from 0.
        id: S1-xxxx or S2-xxxx; the real release has D1-xxxx and D2-xxxx.
        age: In years.
        density: Density with which the images are drawn.
        breasts: One or two breasts, left before right.
    """

    number: int
    id: str
    age: int
    density: str
    breasts: tuple[Breast, ...]


def exams_of(n: int, seed: int, bilateral: float | None = None) -> list[Exam]:
    """Sample the first `n` exams of the release with this seed; an exam does not depend on `n`.

    Args:
        n: Number of exams.
        seed: Seed of the release.
        bilateral: As in `Settings`.
    """
    counts = {"S1": 0, "S2": 0}
    exams = []
    for number in range(n):
        rng = np.random.default_rng([seed, number, 0])
        if rng.random() < FOUR_VIEWS / PATIENTS:
            sides = SIDES
        else:
            sides = ("L",) if rng.random() < LEFT_ALONE else ("R",)
        age, density, breasts = _sample_patient(rng, sides, bilateral)
        # CMMD's second part consists almost only of four-view patients with a cancer of known subtype
        dataset = "S2" if len(sides) == 2 and any(breast.subtype for breast in breasts) else "S1"
        counts[dataset] += 1
        exams.append(Exam(number, f"{dataset}-{counts[dataset]:04d}", age, density, breasts))
    return exams


def replace_findings(exam: Exam, settings: Settings) -> Exam:
    """Return the exam with the findings of another patient with the same views: the null setting."""
    sides = tuple(breast.side for breast in exam.breasts)
    rng = np.random.default_rng([settings.seed, exam.number, 1])
    _, _, others = _sample_patient(rng, sides, settings.bilateral)
    pairs = zip(exam.breasts, others, strict=True)
    breasts = (replace(breast, findings=other.findings, decoys=other.decoys) for breast, other in pairs)
    return replace(exam, breasts=tuple(breasts))


def appearances(exam: Exam, settings: Settings) -> dict[tuple[str, str], tuple[float, float]]:
    """Return how the structure of each breast looks in each view.

    A strand of the structure is radial or runs round the core. With suspicion s, the probability of a radial one is s
    where the cancer is `visible`, and 0 in the other view where `one` view shows it. Where only `comparing` shows it,
    it is (level + s) / 3, with a level 0, 1 or 2 that both breasts share. Grey levels are multiplied by the contrast
    and by 1 - 2 * difficulty * u, at least 0, with u uniform from 0 to 1.

    Returns:
        (side, projection) -> (probability that a strand is radial, factor of its grey levels).
    """
    rng = np.random.default_rng([settings.seed, exam.number, 7])
    level = rng.integers(0, 3)
    found = {}
    for breast in exam.breasts:
        suspicion = max((finding.suspicion for finding in breast.structures), default=0.0)
        seen = PROJECTIONS[rng.integers(0, 2)]
        factor = settings.contrast * max(1 - 2 * settings.difficulty * rng.random(), 0.0)
        for projection in PROJECTIONS:
            share = suspicion
            if settings.visible == "one" and projection != seen:
                share = 0.0
            elif settings.visible == "comparing":
                share = (level + suspicion) / 3
            found[breast.side, projection] = (share, factor)
    return found


def iterate_breasts(exams: list[Exam]) -> Iterator[tuple[Exam, Breast]]:
    """Yield each breast of each exam, with its exam."""
    for exam in exams:
        for breast in exam.breasts:
            yield exam, breast


def _sample_patient(
    rng: Generator, sides: tuple[str, ...], bilateral: float | None
) -> tuple[int, str, tuple[Breast, ...]]:
    """Age, density and breasts."""
    labels = list(_choose(rng, ONE_BREAST if len(sides) == 1 else TWO_BREASTS))
    if len(labels) == 2:
        if rng.random() < 0.5:
            labels.reverse()
        if bilateral is not None:
            labels = _set_bilateral(rng, labels, bilateral)
    density = _choose(rng, DENSITY)
    breasts = tuple(
        _sample_breast(rng, side, *label, density, four_views=len(sides) == 2)
        for side, label in zip(sides, labels, strict=True)
    )
    worst = "Malignant" if any(cmmd == "Malignant" for _, cmmd in labels) else "Benign"
    return int(np.clip(rng.normal(*AGE[worst]), 17, 87)), density, breasts


def _set_bilateral(rng: Generator, labels: list[tuple[str, str]], share: float) -> list[tuple[str, str]]:
    """Two cancers with probability `share`; else the labels, without the pairs that have two."""
    cancer = ("Malignant", "Malignant")
    if rng.random() < share:
        return [cancer, cancer]
    return [cancer, ("Normal", "")] if labels == [cancer, cancer] else labels


def _sample_breast(rng: Generator, side: str, classification: str, cmmd: str, density: str, four_views: bool) -> Breast:
    birads = _choose(rng, dict(zip((1, 2, 3, 4, 5, None), BIRADS[classification], strict=True)))
    abnormality = _choose(rng, ABNORMALITY)
    subtype = _choose(rng, SUBTYPE) if cmmd == "Malignant" and four_views and rng.random() < 0.97 else None
    # what is drawn depends on the label in nothing but the suspicion
    position, structures = _sample_position(rng), []
    if abnormality in ("mass", "both"):
        structures.append(Finding(_choose(rng, CORES), 0.0, float(rng.uniform(5.3, 6.6)), position))
    if abnormality in ("calcification", "both"):
        structures.append(Finding("calc", 0.0, float(rng.uniform(5.3, 6.6)), position))
    name = _choose(rng, BENIGN_MASSES)
    structures = tuple(structures)
    if classification in ("Benign", "Malignant"):
        suspicion = SUSPICION[birads or 3] * (1.0 if classification == "Malignant" else 0.8)
        structures = tuple(replace(structure, suspicion=suspicion) for structure in structures)
    if classification == "Benign":
        structures = tuple(replace(each, kind=name) if each.kind == "mass" else each for each in structures)
    found = (structures, ()) if classification in ("Benign", "Malignant") else ((), structures)
    if classification == "Exclusion" and rng.random() < 9 / 25:  # the nine breasts without a density
        density = ""
    return Breast(side, classification, cmmd, birads, density, abnormality, subtype, *found)


def _sample_position(rng: Generator) -> tuple[float, float, float]:
    """A position with room for a finding, most often in the upper outer quadrant."""
    while True:
        depth = rng.uniform(0.2, 0.7)
        angle, away = rng.normal(np.pi / 4, 1.5), 0.6 * np.sqrt(rng.random())
        lateral, up = away * np.cos(angle), away * np.sin(angle)
        outward = max(abs(lateral), abs(MLO_LIFT[0] * up + MLO_LIFT[1] * lateral))
        if depth**2 + outward**2.2 < 0.5:  # 1 is the skin
            return float(depth), float(lateral), float(up)


def _choose(rng: Generator, counts: dict[Any, int]) -> Any:
    """A key, each as probable as its count is large."""
    sizes = np.array(list(counts.values()))
    return list(counts)[rng.choice(len(sizes), p=sizes / sizes.sum())]
