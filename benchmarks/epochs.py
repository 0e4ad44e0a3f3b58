"""Epochs of training beside a naive trainer's, and what each switch brings, in one run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pydicom
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measure import MEGABYTE, timed
from mammo_utils.config import Study, Training
from mammo_utils.data.cohort import Cohort
from mammo_utils.data.sources import read_cohort
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.models.system import System, build_system
from mammo_utils.synthetic.release import write_release
from mammo_utils.training.dataset import DEVIATION, MEAN, ExamSet, make_exam_set, place_images
from mammo_utils.training.loop import make_optimizer, prepare_model, train_epoch
from mammo_utils.training.loss import total_loss
from mammo_utils.vocabulary import SYSTEMS, VIEWS

CATEGORIES = (1, 2, 3, 4, 5)
SWITCHES = (  # one more each time
    ("this trainer, float32", {"precision": "float32", "channels_last": False, "fused": False}),
    ("+ channels_last", {"channels_last": True}),
    ("+ fused AdamW", {"fused": True}),
    ("+ bfloat16 but in the scan", {"precision": "bfloat16"}),
)
ALTERNATIVES = (  # each by itself on top of all switches: settings of the training, of the model
    ("all, images read from the store's file", {"store": "mapped"}, {}),
    ("all, absent views not encoded", {}, {"missing": "masked"}),
    ("all, encoders compiled", {"compile": True}, {}),
)
PAPER_RUNS, PAPER_EPOCHS, PAPER_EXAMS = 9, 100, 1088  # of each system; 80 % of 1,360 exams


class Pictures(Dataset):
    """Four PNG files an exam, each through torchvision's transforms: what one writes first."""

    def __init__(self, exams: ExamSet, files: pd.DataFrame, size: int, settings: Training):
        self.exams, self.files, self.size = exams, files, size
        a = settings.augmentation
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.RandomHorizontalFlip(a.flip),
                transforms.RandomAffine(a.rotation, (a.translation, a.translation), (1 - a.scale, 1 + a.scale)),
                transforms.Grayscale(3),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, DEVIATION),
            ]
        )

    def __len__(self) -> int:
        return len(self.exams)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        files = self.files.loc[self.exams.names[i]]
        views = [
            self.transform(Image.open(files[view])) if files[view] else torch.zeros(3, self.size, self.size)
            for view in VIEWS
        ]
        return torch.stack(views), self.exams.present[i], {task: y[i] for task, y in self.exams.labels.items()}


def naive_epoch(model: System, loader: DataLoader, weights: dict[str, Tensor], settings: Training) -> float:
    """The plain loop in float32; returns the mean loss."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=settings.weight_decay)
    model.train()
    total = 0.0
    for images, present, labels in loader:
        images, present = images.to(device), present.to(device)
        logits, _ = model(images, present)
        labels = {task: y.to(device) for task, y in labels.items()}
        loss = total_loss(logits, labels, weights, settings.task_weights.model_dump())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        total += loss.item() * len(images)
    return total / len(loader.dataset)


def write_pictures(cohort: Cohort, folder: Path, target: Path) -> pd.DataFrame:
    """Each used image as a PNG of its own size, its side as in the file; paths by exam and view, "" if absent."""
    target.mkdir()
    files = pd.DataFrame("", index=cohort.exams.index, columns=list(VIEWS))
    used = cohort.images[(cohort.images["status"] == "used") & cohort.images["exam"].isin(files.index)]
    for number, row in enumerate(used.itertuples()):
        path = target / f"{number}.png"
        Image.fromarray(pydicom.dcmread(folder / row.path).pixel_array).save(path)
        files.at[row.exam, row.view] = str(path)
    return files


def alternatives(compiled: bool) -> tuple[tuple[str, dict[str, Any], dict[str, Any]], ...]:
    """ALTERNATIVES, without the compiled one unless it is asked for: it takes minutes to compile."""
    return tuple(found for found in ALTERNATIVES if compiled or not found[1].get("compile"))


def epochs_of(
    name: str,
    study: Study,
    exams: dict[str, ExamSet],
    files: pd.DataFrame,
    size: int,
    rounds: int,
    workers: int,
    compiled: bool = False,
) -> dict[str, Any]:
    """Exams per second of one system's epochs: the naive trainer's and this one's, switch by switch ("rows"), and with
    :func:`alternatives` ("alternatives"). exams: the same ones by where their images are, "device" and "mapped".

    Where there is no GPU, the naive trainer's scan is the plain loop in torch, all that mamba-ssm has for a CPU;
    a second naive trainer has the scan of this study, so that the rest of the difference is seen by itself. All in
    turn, one round to warm; the median over `rounds`. The peak of memory is that above an epoch's start, where weights,
    optimiser state and the images of a store on the device lie already.
    """
    device, settings, n_exams = exams["device"].device, study.training, len(exams["device"])
    weights = {"diagnosis": torch.ones(2, device=device), "birads": torch.ones(len(CATEGORIES), device=device)}

    def system(backend: str, changes: dict[str, Any] | None = None) -> System:
        torch.manual_seed(0)
        model = study.model.model_copy(update=changes or {})
        return build_system(name, model, n_birads=len(CATEGORIES), weights="", backend=backend).to(device)

    def naive(backend: str) -> Callable[[], Any]:
        model = system(backend)
        pictures = Pictures(exams["device"], files, size, settings)
        loader = DataLoader(pictures, settings.batch_size, shuffle=True, num_workers=workers)
        return lambda: naive_epoch(model, loader, weights, settings)

    def ours(changes: dict[str, Any], of_model: dict[str, Any] | None = None) -> Callable[[], Any]:
        asked = settings.model_copy(update=changes)
        model = prepare_model(system(study.model.backend, of_model), asked)
        optimizer = make_optimizer(model, asked, 1e-5)
        images = exams["mapped" if asked.store == "mapped" else "device"]
        return lambda: train_epoch(model, images, optimizer, weights, asked, 0, 1, asked.batch_size)

    trainers = {"naive trainer": naive("reference" if device.type == "cpu" else "auto")}
    if device.type == "cpu" and not name.startswith("resnet"):
        trainers["naive trainer, this scan"] = naive("auto")
    changes: dict[str, Any] = {}
    for label, change in SWITCHES:
        changes = changes | change
        trainers[label] = ours(changes)
    others = alternatives(compiled)
    trainers |= {label: ours(changes | change, of_model) for label, change, of_model in others}
    taken: dict[str, list[float]] = {label: [] for label in trainers}
    memory = dict.fromkeys(trainers, float("nan"))
    for turn in range(rounds + 1):
        for label, epoch in trainers.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            seconds = timed(epoch, device) / 1e3
            if device.type == "cuda":
                memory[label] = (torch.cuda.max_memory_allocated() - before) / MEGABYTE
            if turn:
                taken[label].append(seconds)
    rates = {label: n_exams / median(times) for label, times in taken.items()}
    rows = [
        {
            "name": label,
            "exams_per_second": rate,
            "times_naive": rate / rates["naive trainer"],
            "peak_memory_mb": None if memory[label] != memory[label] else memory[label],
        }
        for label, rate in rates.items()
    ]
    return {
        "system": name, "size": size, "batch": settings.batch_size, "exams": n_exams,
        "rows": rows[: -len(others)], "alternatives": rows[-len(others) :],
    }  # fmt: skip


def epochs(
    study: Study,
    size: int,
    n_exams: int,
    rounds: int,
    device: torch.device,
    workers: int,
    systems=SYSTEMS,
    compiled: bool = False,
) -> dict[str, Any]:
    """:func:`epochs_of` for the six systems on a synthetic cohort, its images of the study's own synthetic size; what
    an epoch of all of them takes beside the naive trainer's ("times_naive": once without bfloat16, once with all
    switches); and the hours that the paper's 54 runs of 100 epochs would take with all switches."""
    folder = Path(tempfile.mkdtemp())
    try:
        synthetic = study.data.synthetic.model_dump() | {"n_exams": n_exams}
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
        found = [epochs_of(name, study, exams, files, size, rounds, workers, compiled) for name in systems]
    finally:
        shutil.rmtree(folder)
    naive, exact, fast = (sum(1 / f["rows"][i]["exams_per_second"] for f in found) for i in (0, -2, -1))
    seconds = sum(PAPER_RUNS * PAPER_EPOCHS * PAPER_EXAMS / f["rows"][-1]["exams_per_second"] for f in found)
    return {
        "pictures": [synthetic["rows"], synthetic["columns"]], "workers": workers, "systems": found,
        "times_naive": [naive / exact, naive / fast],
        "paper_hours": seconds / 3600 if len(found) == len(SYSTEMS) else None,
    }  # fmt: skip
