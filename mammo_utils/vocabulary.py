"""The study's vocabulary: the names of views, labels, tasks, subsets and systems. Each name is defined here only.

To add a system, add one entry to `SYSTEMS` and, if its encoder is new, one function to
`mammo_utils.models.encoders.ENCODERS`. Tables, figures, the configuration and the notebooks follow.
"""

from __future__ import annotations

from dataclasses import dataclass

VIEWS = ("L_CC", "L_MLO", "R_CC", "R_MLO")  # in the order of Eq. 8
VIEW_TITLES = {view: view.replace("_", "-") for view in VIEWS}
SIDES = ("L", "R")  # the breasts of an exam
SIDE_NAMES = {"L": "left", "R": "right"}
CLASSES = ("normal", "benign", "malignant")  # Figure 4
DENSITIES = ("fatty", "scattered", "heterogeneous", "extreme")  # BI-RADS density A to D
LESION_KINDS = ("mass", "calc", "dist", "FA", "FAD", "lipoma")  # TOMPEI-CMMD's labels

TASKS = ("diagnosis", "birads")
TASK_TITLES = {"diagnosis": "Diagnosis", "birads": "BI-RADS"}
TASK_MODES = ("multi", *TASKS)  # both tasks at once, or one alone
MODE_TITLES = {"multi": "both tasks", "diagnosis": "diagnosis alone", "birads": "BI-RADS alone"}
SUBSETS = {"1v5": (1, 5), "1v3v5": (1, 3, 5), "1to5": (1, 2, 3, 4, 5)}  # §4.2: BI-RADS categories of each subset
SUBSET_TITLES = {"1v5": "BI-RADS 1 vs 5", "1v3v5": "BI-RADS 1 vs 3 vs 5", "1to5": "BI-RADS 1 to 5"}
REFERENCE = "hybrid_shared"  # the paper's best system: every other one is compared with it


@dataclass(frozen=True)
class SystemEntry:
    """What the study knows about a system apart from its code.

    Attributes:
        title: Name printed in tables and figures, as in the paper's Tables 2-4.
        colour: Its colour in figures (Okabe and Ito 2008), as `#RRGGBB`.
        encoder: Key of `models.encoders.ENCODERS`, which builds its encoder.
        encoders: 1 if all views share one encoder, 2 if CC and MLO views have one each.
        learning_rate: Default learning rate of AdamW.
        question: What its comparison with the reference answers; "" for the reference itself.
        paper_learning_rate: The rate stated in §4.3, None where the paper states none.
        blocks: Setting that holds its number of state space blocks, "" where it has none.
        pretrained: Whether its encoder has ImageNet weights to start from.
    """

    title: str
    colour: str
    encoder: str
    encoders: int
    learning_rate: float
    question: str
    paper_learning_rate: float | None = None
    blocks: str = ""
    pretrained: bool = True

    @property
    def short(self) -> str:
        """The title for narrow places."""
        return self.title.replace("Hybrid ResNet-VSSM", "Hybrid")


SYSTEMS: dict[str, SystemEntry] = {
    "resnet18": SystemEntry(
        title="ResNet-18",
        colour="#56B4E9",
        encoder="resnet18",
        encoders=1,
        learning_rate=1e-4,
        paper_learning_rate=1e-4,
        question="Do state space blocks after the cut ResNet-18 add to ResNet-18?",
    ),
    "resnet50": SystemEntry(
        title="ResNet-50",
        colour="#0072B2",
        encoder="resnet50",
        encoders=1,
        learning_rate=1e-4,
        question="Does the hybrid do better than a deeper CNN?",
    ),
    "vssm_shared": SystemEntry(
        title="VSSM (Shared)",
        colour="#009E73",
        encoder="vssm",
        encoders=1,
        learning_rate=1e-5,
        paper_learning_rate=1e-5,
        question="Does a convolutional stem add to a pure VSSM?",
        blocks="vssm_blocks",
        pretrained=False,
    ),
    "vssm_view_specific": SystemEntry(
        title="VSSM (View-specific)",
        colour="#CC79A7",
        encoder="vssm",
        encoders=2,
        learning_rate=1e-5,
        paper_learning_rate=1e-5,
        question="Does it also add where the VSSM has an encoder each for CC and MLO?",
        blocks="vssm_blocks",
        pretrained=False,
    ),
    "hybrid_shared": SystemEntry(
        title="Hybrid ResNet-VSSM (Shared)",
        colour="#D55E00",
        encoder="hybrid",
        encoders=1,
        learning_rate=1e-4,
        paper_learning_rate=1e-4,
        question="",
        blocks="hybrid_blocks",
    ),
    "hybrid_view_specific": SystemEntry(
        title="Hybrid ResNet-VSSM (View-specific)",
        colour="#E69F00",
        encoder="hybrid",
        encoders=2,
        learning_rate=1e-4,
        paper_learning_rate=1e-4,
        question="Is one encoder for all views better than one each for CC and MLO?",
        blocks="hybrid_blocks",
    ),
}
