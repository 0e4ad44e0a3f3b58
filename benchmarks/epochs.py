"""Epochs of training beside a naive trainer's, and the gain of each ablation and alternative."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pydicom
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measure import interleaved_medians, peak_memory
from mammo_utils.config import Training
from mammo_utils.data.cohort import Cohort
from mammo_utils.data.sources import read_cohort
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.models.system import System, build_system
from mammo_utils.study import Study
from mammo_utils.synthetic.release import write_release
from mammo_utils.training.dataset import DEVIATION, MEAN, ExamSet, make_exam_set, place_images
from mammo_utils.training.loop import make_optimizer, prepare_model, train_epoch
from mammo_utils.training.loss import total_loss
from mammo_utils.vocabulary import SUBSETS, SYSTEMS, VIEWS

CATEGORIES = SUBSETS["1to5"]
ABLATIONS = (  # settings of the training, each on top of those before it
    ("this trainer, float32", {"precision": "float32", "channels_last": False, "fused": False}),
    ("+ channels_last", {"channels_last": True}),
    ("+ fused AdamW", {"fused": True}),
    ("+ bfloat16 but in the scan", {"precision": "bfloat16"}),
)
ALTERNATIVES = (  # settings of the training and of the model, each alone on top of all ablations
    ("all, images read from the store's file", {"store": "mapped"}, {}),
    ("all, absent views not encoded", {}, {"missing": "masked"}),
    ("all, encoders compiled", {"compile": True}, {}),
)
PAPER_RUNS, PAPER_EPOCHS, PAPER_EXAMS = 9, 100, 1088  # of each system; 80 % of 1,360 exams


def list_variants(compiled: bool = False) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield name, training settings and model settings of the ablations and alternatives; `compiled`: of all of them.

    Compiling takes minutes, so that alternative is left out by default.
    """
    settings: dict[str, Any] = {}
    for name, change in ABLATIONS:
        settings = settings | change
        yield name, settings, {}
    for name, change, model in ALTERNATIVES:
        if compiled or not change.get("compile"):
            yield name, settings | change, model


class PictureDataset(Dataset):
    """Four PNG files an exam, each through torchvision's transforms: a first draft of a data set."""

    def __init__(self, exams: ExamSet, files: pd.DataFrame, size: int, settings: Training):
        self.exams, self.files, self.size, a = exams, files, size, settings.augmentation
        steps = [
            transforms.Resize((size, size)),
            transforms.RandomHorizontalFlip(a.flip),
            transforms.RandomAffine(a.rotation, (a.translation, a.translation), (1 - a.scale, 1 + a.scale)),
            transforms.Grayscale(3),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.exams)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        files, absent = self.files.loc[self.exams.names[i], list(VIEWS)], torch.zeros(3, self.size, self.size)
        views = [self.transform(Image.open(file)) if file else absent for file in files]
        return torch.stack(views), self.exams.present[i], {task: y[i] for task, y in self.exams.labels.items()}


def write_pictures(cohort: Cohort, folder: Path, target: Path) -> pd.DataFrame:
    """Write each used image as a PNG of its own size, unflipped; return the paths by exam and view, "" if absent."""
    target.mkdir()
    files = pd.DataFrame("", index=cohort.exams.index, columns=list(VIEWS))
    used = cohort.images[(cohort.images["status"] == "used") & cohort.images["exam"].isin(files.index)]
    for number, row in enumerate(used.itertuples()):
        files.at[row.exam, row.view] = str(target / f"{number}.png")
        Image.fromarray(pydicom.dcmread(folder / row.path).pixel_array).save(files.at[row.exam, row.view])
    return files


def train_naive_epoch(model: System, loader: DataLoader, weights: dict[str, Tensor], settings: Training) -> float:
    """Train one epoch by a plain loop in float32; return the mean loss."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=settings.weight_decay)
    model.train()
    total = 0.0
    for images, present, labels in loader:
        logits, _ = model(images.to(device), present.to(device))
        labels = {task: y.to(device) for task, y in labels.items()}
        loss = total_loss(logits, labels, weights, settings.task_weights.model_dump(), ordinal=model.ordinal)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        total += loss.item() * len(images)
    return total / len(loader.dataset)


def _compare_trainers(
    name: str,
    study: Study,
    exams: dict[str, ExamSet],
    files: pd.DataFrame,
    size: int,
    rounds: int,
    workers: int,
    compiled: bool,
) -> dict[str, Any]:
    """Measure exams per second of one system's epochs, the naive trainer's and those of `list_variants`."""
    device, settings, n_exams = exams["device"].device, study.training, len(exams["device"])
    weights = {"diagnosis": torch.ones(2, device=device), "birads": torch.ones(len(CATEGORIES), device=device)}

    def build(**changes: Any) -> System:
        torch.manual_seed(0)
        return build_system(name, study.model, n_birads=len(CATEGORIES), weights="", **changes).to(device)

    def naive_trainer(backend: str) -> Callable[[], Any]:
        pictures = PictureDataset(exams["device"], files, size, settings)
        loader = DataLoader(pictures, settings.batch_size, shuffle=True, num_workers=workers)
        return partial(train_naive_epoch, build(backend=backend), loader, weights, settings)

    def trainer(changes: dict[str, Any], of_model: dict[str, Any]) -> Callable[[], Any]:
        changed = settings.model_copy(update=changes)
        model = prepare_model(build(**of_model), changed)
        optimizer = make_optimizer(model, changed, 1e-5)
        images = exams["mapped" if changed.store == "mapped" else "device"]
        return lambda: train_epoch(model, images, optimizer, weights, changed, 0, 1, changed.batch_size)

    trainers = {"naive trainer": naive_trainer("reference" if device.type == "cpu" else "auto")}
    if device.type == "cpu" and not name.startswith("resnet"):
        trainers["naive trainer, this scan"] = naive_trainer("auto")
    n_rows = len(trainers) + len(ABLATIONS)
    trainers |= {label: trainer(changes, of_model) for label, changes, of_model in list_variants(compiled)}
    memory: dict[str, float | None] = dict.fromkeys(trainers)

    def train(label: str) -> None:
        if device.type == "cuda":
            memory[label] = peak_memory(trainers[label], device)
        else:
            trainers[label]()

    times = interleaved_medians({label: partial(train, label) for label in trainers}, rounds, device)
    rows = [
        {"name": label, "exams_per_second": 1e3 * n_exams / ms, "times_naive": times["naive trainer"] / ms}
        | {"peak_memory_mb": memory[label]}
        for label, ms in times.items()
    ]
    facts = {"system": name, "size": size, "batch": settings.batch_size, "exams": n_exams}
    return facts | {"rows": rows[:n_rows], "alternatives": rows[n_rows:]}


def compare_epochs(
    study: Study,
    size: int,
    n_exams: int,
    rounds: int,
    device: torch.device,
    workers: int,
    systems: Sequence[str] = tuple(SYSTEMS),
    compiled: bool = False,
) -> dict[str, Any]:
    """Measure epochs of each system on a synthetic cohort by the naive trainer and by the variants of this one.

    Without a GPU, the naive trainer's scan is the plain loop in torch, which is all that mamba-ssm has for a CPU; a
    second naive trainer has the scan of this study, which isolates the rest of the difference. Peak memory, on a GPU
    only, is above an epoch's start, when weights, optimiser state and a store on the device are there already.

    Args:
        study: Its cohort, models and recipe are used.
        size: Side of the images in training, in pixels.
        n_exams: Exams of an epoch.
        rounds: Interleaved rounds whose median is taken.
        device: Where to train.
        workers: Processes of the naive trainer's loader.
        systems: Systems to measure.
        compiled: Whether to measure compiled encoders.

    Returns:
        The record. "times_naive": the naive trainer's time of an epoch of all systems over this one's, without bfloat16
        and with it; "paper_hours": the time of the paper's 54 runs with it, None unless all systems were measured.
    """
    with TemporaryDirectory() as temporary:
        folder, synthetic = Path(temporary), study.data.synthetic.model_dump() | {"n_exams": n_exams}
        write_release(folder / "data", **synthetic, workers=1)
        cohort = read_cohort("cmmd", folder / "data")
        store = build_store(cohort, folder / "store", size=size, workers=1)
        cohort = apply_store(cohort, store)
        groups = pd.Series(cohort.exams.index, cohort.exams.index)
        exams = {
            where: make_exam_set(cohort.exams, groups, store, CATEGORIES, device, place_images(store, device, where))
            for where in ("device", "mapped")
        }
        files = write_pictures(cohort, folder / "data", folder / "pictures")
        found = [_compare_trainers(name, study, exams, files, size, rounds, workers, compiled) for name in systems]
    naive, exact, fast = (sum(1 / f["rows"][i]["exams_per_second"] for f in found) for i in (0, -2, -1))
    hours = PAPER_RUNS * PAPER_EPOCHS * PAPER_EXAMS * fast / 3600 if len(found) == len(SYSTEMS) else None
    facts = {"pictures": [synthetic["rows"], synthetic["columns"]], "workers": workers, "systems": found}
    return facts | {"times_naive": [naive / exact, naive / fast], "paper_hours": hours}
