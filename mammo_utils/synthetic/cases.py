"""Who is in the synthetic release: classes, BI-RADS, densities, views and findings, as often as in the real one.

The margins are those of the release: 826 of 1,775 patients have four views; 2,601 breasts are 1,167 Malignant, 1,054
Normal, 215 Benign, 140 Invisible and 25 Exclusion; BI-RADS 1 to 5 number 1,055, 79, 252, 399 and 665, and 151 are
blank. CMMD's clinical sheet gives the pairs of labels within a patient: 729 Malignant beside an unlabelled breast, 61
Benign + Benign, 30 Benign + Malignant, 6 Malignant + Malignant; alone 545 Malignant and 404 Benign. The cells inside
these margins are invented.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from mammo_utils.vocabulary import SIDES

LIFT = (0.9, 0.3)  # how far `up` and `lateral` lift a place in the MLO view, which is taken from the upper inner side
FOUR_VIEWS, PATIENTS = 826, 1775
LEFT_SHARE = 988 / 1872  # of CMMD's labelled breasts

# (number of patients, (class in TOMPEI-CMMD, label in CMMD) of each breast); "" = CMMD has no row for it
ONE_BREAST = (
    (480, (("Malignant", "Malignant"),)),
    (62, (("Invisible", "Malignant"),)),
    (3, (("Exclusion", "Malignant"),)),
    (236, (("Normal", "Benign"),)),
    (160, (("Benign", "Benign"),)),
    (8, (("Exclusion", "Benign"),)),
)
TWO_BREASTS = (
    (641, (("Malignant", "Malignant"), ("Normal", ""))),
    (5, (("Malignant", "Malignant"), ("Benign", ""))),
    (3, (("Malignant", "Malignant"), ("Exclusion", ""))),
    (75, (("Invisible", "Malignant"), ("Normal", ""))),
    (5, (("Exclusion", "Malignant"), ("Normal", ""))),
    (22, (("Normal", "Benign"), ("Normal", "Benign"))),
    (26, (("Normal", "Benign"), ("Benign", "Benign"))),
    (8, (("Benign", "Benign"), ("Benign", "Benign"))),
    (5, (("Normal", "Benign"), ("Exclusion", "Benign"))),
    (19, (("Normal", "Benign"), ("Malignant", "Malignant"))),
    (8, (("Benign", "Benign"), ("Malignant", "Malignant"))),
    (2, (("Normal", "Benign"), ("Invisible", "Malignant"))),
    (1, (("Normal", "Benign"), ("Exclusion", "Malignant"))),
    (5, (("Malignant", "Malignant"), ("Malignant", "Malignant"))),
    (1, (("Malignant", "Malignant"), ("Invisible", "Malignant"))),
)
BIRADS = {  # breasts by BI-RADS 1..5, then blank
    "Normal": (1043, 11, 0, 0, 0, 0),
    "Benign": (0, 62, 112, 36, 5, 0),
    "Malignant": (0, 6, 139, 362, 660, 0),
    "Invisible": (0, 0, 0, 0, 0, 140),
    "Exclusion": (12, 0, 1, 1, 0, 11),
}
DENSITY = {"heterogeneous dense": 1671, "extremely dense": 551, "scattered": 340, "fatty": 30}
ABNORMALITY = {  # of CMMD's rows: mass, calcification, both
    "Malignant": {"mass": 737, "calcification": 198, "both": 381},
    "Benign": {"mass": 412, "calcification": 64, "both": 80},
}
SUBTYPE = {"Luminal B": 376, "Luminal A": 152, "HER2-enriched": 135, "triple negative": 86}
AGE = {"Malignant": (49.4, 10.7), "Benign": (42.6, 9.8)}  # mean and standard deviation in years
MASS_KINDS = {
    "Malignant": {"mass": 90, "dist": 6, "FAD": 4},
    "Benign": {"FA": 50, "mass": 25, "FAD": 15, "lipoma": 10},
}


@dataclass(frozen=True)
class Finding:
    """One lesion of a breast.

    Attributes:
        kind: The release's word: mass, calc, dist, FA, FAD or lipoma.
        suspicion: From 0 (plainly benign) to 1 (plainly cancer); conspicuity and spiculation rise with it.
        radius: In mm.
        place: (depth, lateral, up); depth is 0 at the chest wall and 1 at the nipple, the others are -1 to 1.
    """

    kind: str
    suspicion: float
    radius: float
    place: tuple[float, float, float]


@dataclass(frozen=True)
class Breast:
    """One breast of a patient.

    Attributes:
        side: "L" or "R".
        classification: Class in TOMPEI-CMMD.
        cmmd: CMMD's own label, "" if it has none.
        birads: None if blank.
        density: As the reader recorded it, "" if blank.
        abnormality: CMMD's word, also where it has no row.
        subtype: Molecular subtype, None if unknown.
        findings: What is drawn.
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
        number: Counts from 0.
        id: S1-xxxx or S2-xxxx, never the real D1- or D2-.
        age: In years.
        density: What is drawn.
        breasts: One or two.
    """

    number: int
    id: str
    age: int
    density: str
    breasts: tuple[Breast, ...]


def sample_exams(n: int, seed: int) -> list[Exam]:
    """Sample the first `n` exams of the release with this seed; each is a function of the seed and its number."""
    counts = {"S1": 0, "S2": 0}
    exams = []
    for number in range(n):
        rng = _rng(seed, number, 0)
        sides = _sample_sides(rng)
        age, density, breasts = _sample_patient(rng, sides)
        # nearly all of CMMD's second part are four-view patients with a cancer of known subtype
        dataset = "S2" if len(sides) == 2 and any(breast.subtype for breast in breasts) else "S1"
        counts[dataset] += 1
        exams.append(Exam(number, f"{dataset}-{counts[dataset]:04d}", age, density, breasts))
    return exams


def sample_null_findings(exam: Exam, seed: int) -> tuple[tuple[Finding, ...], ...]:
    """Sample the findings of each breast for the null setting: those of another patient with the same views."""
    sides = tuple(breast.side for breast in exam.breasts)
    _, _, breasts = _sample_patient(_rng(seed, exam.number, 1), sides)
    return tuple(breast.findings for breast in breasts)


def iterate_breasts(exams: list[Exam]) -> Iterator[tuple[Exam, Breast]]:
    """Yield every breast with its exam."""
    return ((exam, breast) for exam in exams for breast in exam.breasts)


def _sample_sides(rng: np.random.Generator) -> tuple[str, ...]:
    if rng.random() < FOUR_VIEWS / PATIENTS:
        return SIDES
    return ("L",) if rng.random() < LEFT_SHARE else ("R",)


def _rng(seed: int, number: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, number, stream])


def _sample_patient(rng: np.random.Generator, sides: tuple[str, ...]) -> tuple[int, str, tuple[Breast, ...]]:
    table = ONE_BREAST if len(sides) == 1 else TWO_BREASTS
    labels = list(table[rng.choice(len(table), p=_shares(tuple(count for count, _ in table)))][1])
    if len(labels) == 2 and rng.random() < 0.5:
        labels.reverse()
    density = _pick(rng, DENSITY)
    breasts = tuple(
        _sample_breast(rng, side, *label, density, four_views=len(sides) == 2)
        for side, label in zip(sides, labels, strict=True)
    )
    worst = "Malignant" if any(cmmd == "Malignant" for _, cmmd in labels) else "Benign"
    age = int(np.clip(rng.normal(*AGE[worst]), 17, 87))
    return age, density, breasts


def _sample_breast(
    rng: np.random.Generator, side: str, classification: str, cmmd: str, density: str, four_views: bool
) -> Breast:
    index = rng.choice(6, p=_shares(BIRADS[classification]))
    birads = None if index == 5 else int(index) + 1
    abnormality = _pick(rng, ABNORMALITY[cmmd or "Benign"])
    subtype = _pick(rng, SUBTYPE) if cmmd == "Malignant" and four_views and rng.random() < 0.97 else None
    findings: tuple[Finding, ...] = ()
    if classification in ("Benign", "Malignant"):
        findings = _sample_findings(rng, classification, birads or 3, abnormality)
    if classification == "Exclusion" and rng.random() < 9 / 25:  # the nine breasts without a density
        density = ""
    return Breast(side, classification, cmmd, birads, density, abnormality, subtype, findings)


def _sample_findings(
    rng: np.random.Generator, classification: str, birads: int, abnormality: str
) -> tuple[Finding, ...]:
    malignant = classification == "Malignant"
    suspicion = {2: 0.1, 3: 0.45, 4: 0.85, 5: 1.0}[birads] * (1.0 if malignant else 0.8)
    place = _sample_place(rng)
    findings = []
    if abnormality in ("mass", "both"):
        kind = _pick(rng, MASS_KINDS[classification])
        radius = (5.5 + 5.0 * suspicion) * rng.uniform(0.85, 1.2)
        findings.append(Finding(kind, suspicion, float(radius), place))
    if abnormality in ("calcification", "both"):
        radius = (6.5 + 6.0 * suspicion) * rng.uniform(0.85, 1.2)
        findings.append(Finding("calc", suspicion, float(radius), place))
    return tuple(findings)


def _sample_place(rng: np.random.Generator) -> tuple[float, float, float]:
    """Sample a place with room for a finding, more often in the upper outer quadrant."""
    # a wide spread: the mean image of breasts with findings differs from that without by the curvature of this density
    while True:
        depth = rng.uniform(0.15, 0.8)
        angle, away = rng.normal(np.pi / 4, 1.5), 0.75 * np.sqrt(rng.random())
        lateral, up = away * np.cos(angle), away * np.sin(angle)
        outward = max(abs(lateral), abs(LIFT[0] * up + LIFT[1] * lateral))
        if depth**2 + outward**2.2 < 0.66:  # 1 is the skin
            return float(depth), float(lateral), float(up)


def _pick(rng: np.random.Generator, counts: dict[str, int]) -> str:
    return list(counts)[rng.choice(len(counts), p=_shares(tuple(counts.values())))]


@cache
def _shares(counts: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(count / sum(counts) for count in counts)
