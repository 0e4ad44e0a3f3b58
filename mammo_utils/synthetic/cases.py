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
ABNORMALITY = {  # number of CMMD's rows
    "Malignant": {"mass": 737, "calcification": 198, "both": 381},
    "Benign": {"mass": 412, "calcification": 64, "both": 80},
}
SUBTYPE = {"Luminal B": 376, "Luminal A": 152, "HER2-enriched": 135, "triple negative": 86}
AGE = {"Malignant": (49.4, 10.7), "Benign": (42.6, 9.8)}  # years: mean and standard deviation of CMMD's rows
MASS_KINDS = {
    "Malignant": {"mass": 90, "dist": 6, "FAD": 4},
    "Benign": {"FA": 50, "mass": 25, "FAD": 15, "lipoma": 10},
}


@dataclass(frozen=True)
class Settings:
    """What a release is drawn with; its pixels and UIDs are a function of these and of the exam's number.

    Attributes:
        rows: Height of an image in pixels, at least 32 (the real detector: 2294); always 215.8 mm.
        columns: Width of an image in pixels, at least 32 (the real detector: 1914); always 180.1 mm.
        seed: Seed of all random numbers.
        contrast: Factor of the findings' contrast; 0 makes them invisible.
        noise: Quantum noise; 1 is a standard deviation of two grey levels.
        null: Whether the findings are independent of the labels.
    """

    rows: int = 288
    columns: int = 240
    seed: int = 0
    contrast: float = 1.0
    noise: float = 1.0
    null: bool = False


@dataclass(frozen=True)
class Finding:
    """One lesion of a breast.

    Attributes:
        kind: mass, calc, dist, FA, FAD or lipoma, as in the release.
        suspicion: 0 (clearly benign) to 1 (clearly cancer); conspicuity and spiculation rise with it.
        radius: In mm.
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
    """

    side: str
    classification: str
    cmmd: str
    birads: int | None
    density: str
    abnormality: str
    subtype: str | None
    findings: tuple[Finding, ...]


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


def exams_of(n: int, seed: int) -> list[Exam]:
    """Sample the first `n` exams of the release with this seed; an exam does not depend on `n`."""
    counts = {"S1": 0, "S2": 0}
    exams = []
    for number in range(n):
        rng = np.random.default_rng([seed, number, 0])
        if rng.random() < FOUR_VIEWS / PATIENTS:
            sides = SIDES
        else:
            sides = ("L",) if rng.random() < LEFT_ALONE else ("R",)
        age, density, breasts = _sample_patient(rng, sides)
        # CMMD's second part consists almost only of four-view patients with a cancer of known subtype
        dataset = "S2" if len(sides) == 2 and any(breast.subtype for breast in breasts) else "S1"
        counts[dataset] += 1
        exams.append(Exam(number, f"{dataset}-{counts[dataset]:04d}", age, density, breasts))
    return exams


def replace_findings(exam: Exam, seed: int) -> Exam:
    """Return the exam with the findings of another patient with the same views: the null setting."""
    sides = tuple(breast.side for breast in exam.breasts)
    _, _, others = _sample_patient(np.random.default_rng([seed, exam.number, 1]), sides)
    pairs = zip(exam.breasts, others, strict=True)
    return replace(exam, breasts=tuple(replace(breast, findings=other.findings) for breast, other in pairs))


def iterate_breasts(exams: list[Exam]) -> Iterator[tuple[Exam, Breast]]:
    """Yield each breast of each exam, with its exam."""
    for exam in exams:
        for breast in exam.breasts:
            yield exam, breast


def _sample_patient(rng: Generator, sides: tuple[str, ...]) -> tuple[int, str, tuple[Breast, ...]]:
    """Age, density and breasts."""
    labels = list(_choose(rng, ONE_BREAST if len(sides) == 1 else TWO_BREASTS))
    if len(labels) == 2 and rng.random() < 0.5:
        labels.reverse()
    density = _choose(rng, DENSITY)
    breasts = tuple(
        _sample_breast(rng, side, *label, density, four_views=len(sides) == 2)
        for side, label in zip(sides, labels, strict=True)
    )
    worst = "Malignant" if any(cmmd == "Malignant" for _, cmmd in labels) else "Benign"
    return int(np.clip(rng.normal(*AGE[worst]), 17, 87)), density, breasts


def _sample_breast(rng: Generator, side: str, classification: str, cmmd: str, density: str, four_views: bool) -> Breast:
    birads = _choose(rng, dict(zip((1, 2, 3, 4, 5, None), BIRADS[classification], strict=True)))
    abnormality = _choose(rng, ABNORMALITY[cmmd or "Benign"])
    subtype = _choose(rng, SUBTYPE) if cmmd == "Malignant" and four_views and rng.random() < 0.97 else None
    findings = []
    if classification in MASS_KINDS:
        suspicion = {2: 0.1, 3: 0.45, 4: 0.85, 5: 1.0}[birads or 3] * (1.0 if classification == "Malignant" else 0.8)
        position = _sample_position(rng)
        if abnormality in ("mass", "both"):
            kind = _choose(rng, MASS_KINDS[classification])
            radius = (5.5 + 5.0 * suspicion) * rng.uniform(0.85, 1.2)
            findings.append(Finding(kind, suspicion, float(radius), position))
        if abnormality in ("calcification", "both"):
            radius = (6.5 + 6.0 * suspicion) * rng.uniform(0.85, 1.2)
            findings.append(Finding("calc", suspicion, float(radius), position))
    if classification == "Exclusion" and rng.random() < 9 / 25:  # the nine breasts without a density
        density = ""
    return Breast(side, classification, cmmd, birads, density, abnormality, subtype, tuple(findings))


def _sample_position(rng: Generator) -> tuple[float, float, float]:
    """A position with room for a finding, most often in the upper outer quadrant."""
    # a wide spread, because a finding changes the mean picture by the curvature of the spread
    while True:
        depth = rng.uniform(0.15, 0.8)
        angle, away = rng.normal(np.pi / 4, 1.5), 0.75 * np.sqrt(rng.random())
        lateral, up = away * np.cos(angle), away * np.sin(angle)
        outward = max(abs(lateral), abs(MLO_LIFT[0] * up + MLO_LIFT[1] * lateral))
        if depth**2 + outward**2.2 < 0.66:  # 1 is the skin
            return float(depth), float(lateral), float(up)


def _choose(rng: Generator, counts: dict[Any, int]) -> Any:
    """A key, each as probable as its count is large."""
    sizes = np.array(list(counts.values()))
    return list(counts)[rng.choice(len(sizes), p=sizes / sizes.sum())]
