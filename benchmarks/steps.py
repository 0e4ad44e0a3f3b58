"""The time of a training step, part by part, for each system."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.measure import peak_memory, time_call
from mammo_utils.models import ss2d
from mammo_utils.models.ss2d import SS2D, PatchEmbedding, PatchMerging, SSConvSSM
from mammo_utils.models.system import System, build_system
from mammo_utils.study import Study
from mammo_utils.training.augment import draw_affine_maps
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.loop import make_optimizer, prepare_model
from mammo_utils.training.loss import total_loss
from mammo_utils.training.memory import autocast
from mammo_utils.vocabulary import SYSTEMS

BATCH, OPTIMISER, REST = "batch and augmentation", "clipping and optimiser", "gate, heads, loss, sums"
SCANS = "four scans"
PARTS = {  # part -> its colour in figures: ResNet blue, parts of the scans orange and red
    BATCH: "#333333",
    "ResNet stem": "#C6DDEE",
    "ResNet layer1": "#8FBFE0",
    "ResNet layer2": "#56A0D3",
    "ResNet layer3": "#2B7BB9",
    "ResNet layer4": "#0B4F8A",
    "patches": "#F0E442",
    "convolved halves": "#009E73",
    "scanned halves but scans": "#E69F00",
    SCANS: "#D55E00",
    REST: "#CC79A7",
    OPTIMISER: "#AAAAAA",
}


class PartTimer:
    """Records when a step passes from one part to the next; a part's time excludes the parts inside it."""

    def __init__(self, device: torch.device):
        self.cuda, self.phase, self.open, self.stamps = device.type == "cuda", "forward_ms", [], []

    def start(self, phase: str, *parts: str) -> None:
        """Start "forward_ms" or "backward_ms", inside the given parts only."""
        self.phase, self.open = phase, list(parts)
        self._stamp()

    def enter(self, part: str) -> None:
        """Start a part inside those that are open."""
        self.open.append(part)
        self._stamp()

    def leave(self, part: str) -> None:
        """End a part, and those opened inside it: one whose input needs no gradient has no end of its own."""
        if part in self.open:
            while self.open.pop() != part:
                pass
        self._stamp()

    def _stamp(self) -> None:
        now = torch.cuda.Event(enable_timing=True) if self.cuda else time.perf_counter()
        if self.cuda:
            now.record()
        self.stamps.append(((self.open[-1] if self.open else REST, self.phase), now))

    def milliseconds(self) -> dict[tuple[str, str], float]:
        """Sum the time of each (part, phase)."""
        if self.cuda:
            torch.cuda.synchronize()
        spent: dict[tuple[str, str], float] = defaultdict(float)
        for (key, start), (_, end) in pairwise(self.stamps):
            spent[key] += start.elapsed_time(end) if self.cuda else 1e3 * (end - start)
        return spent


def find_parts(system: System) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield (part, its first module, its last module); modules of the same kind share a part."""
    for module in system.modules():
        if isinstance(module, nn.Sequential) and hasattr(module, "conv1"):  # a ResNet, whole or cut
            yield "ResNet stem", module.conv1, module.maxpool
            yield from ((f"ResNet {name}", m, m) for name, m in module.named_children() if name.startswith("layer"))
        elif isinstance(module, PatchEmbedding | PatchMerging):
            yield "patches", module, module
        elif isinstance(module, SSConvSSM):
            yield "convolved halves", module.convolutions, module.convolutions
        elif isinstance(module, SS2D):
            yield "scanned halves but scans", module, module


@contextmanager
def timed_parts(system: System, timer: PartTimer) -> Iterator[None]:
    """Within the context, report to `timer` when each part of `system` starts and ends, forward and backward."""

    def mark(x: Tensor, on_backward: Callable[[], None]) -> Tensor:
        x = x.view_as(x)  # of its own, so that the hook runs when the gradient passes here, not where `x` was made
        if x.requires_grad:
            x.register_hook(lambda gradient: on_backward())
        return x

    def enter(x: Tensor, part: str) -> Tensor:
        timer.enter(part)
        return mark(x, lambda: timer.leave(part))

    def leave(y: Tensor, part: str) -> Tensor:
        y = mark(y, lambda: timer.enter(part))
        timer.leave(part)
        return y

    def scan_paths(u: Tensor, *arguments: Tensor, **options: str) -> Tensor:
        return leave(original(enter(u, SCANS), *arguments, **options), SCANS)

    original = ss2d.scan_paths
    with ExitStack() as stack:
        for part, first, last in find_parts(system):
            before = first.register_forward_pre_hook(lambda m, x, part=part: (enter(x[0], part),))
            after = last.register_forward_hook(lambda m, x, y, part=part: leave(y, part))
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(patch.object(ss2d, "scan_paths", scan_paths))
        yield


def draw_exams(classes: dict[str, int], size: int, number: int, device: torch.device) -> ExamSet:
    """Draw exams of noise with random labels, all views present.

    Args:
        classes: Task -> number of classes.
        size: Side of the images, in pixels.
        number: Exams.
        device: Where the images are.
    """
    generator, names = torch.Generator().manual_seed(0), tuple(map(str, range(number)))
    images = torch.randint(0, 256, (4 * number, size, size), dtype=torch.uint8, generator=generator)
    return ExamSet(
        names=names,
        groups=names,
        images=images.to(device),
        rows=torch.arange(4 * number).view(number, 4),  # (number, 4): every view is present
        labels={task: torch.randint(0, n, (number, 2), generator=generator) for task, n in classes.items()},
        categories=(1, 5),
        device=device,
    )


def make_step(system: System, study: Study, size: int, batch: int, device: torch.device) -> Callable[..., None]:
    """Make a function that does one training step on `batch` exams of `draw_exams`, as the loop does it.

    Args:
        system: The system, on `device`.
        study: Its recipe is used.
        size: Side of the images, in pixels.
        batch: Exams of the step.
        device: Where to train.
    """
    classes = system.classes
    exams = draw_exams(classes, size, batch, device)
    weights = {task: torch.ones(n, device=device) for task, n in classes.items()}
    settings = study.training
    optimizer = make_optimizer(prepare_model(system, settings), settings, 1e-5)
    maps = draw_affine_maps(batch, settings.augmentation, torch.Generator().manual_seed(0))
    system.train()

    def step(timer: PartTimer | None = None) -> None:
        start = timer.start if timer else lambda *_: None
        start("forward_ms", BATCH)
        drawn = exams.batch(torch.arange(batch), maps)
        start("forward_ms")
        with autocast(device, settings):
            logits, _ = system(drawn.images, drawn.present)
        loss = total_loss(logits, drawn.labels, weights, settings.task_weights.model_dump(), ordinal=system.ordinal)
        start("backward_ms")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        start("forward_ms", OPTIMISER)
        nn.utils.clip_grad_norm_(system.parameters(), settings.clip)
        optimizer.step()
        start("forward_ms")

    return step


def measure_steps(
    study: Study,
    size: int,
    batch: int,
    rounds: int,
    device: torch.device,
    systems: Sequence[str] = tuple(SYSTEMS),
) -> list[dict[str, Any]]:
    """Measure a training step of each system: its parts, the whole step without a timer, and its memory.

    Args:
        study: Its models and recipe are used.
        size: Side of the images, in pixels.
        batch: Exams of the step.
        rounds: Steps with a timer and steps without, alternately; their medians are taken.
        device: Where to train.
        systems: Systems to measure.

    Returns:
        One record a system; its peak of memory is in megabytes above the weights.
    """
    return [_measure_step(name, study, size, batch, rounds, device) for name in systems]


def _measure_step(name: str, study: Study, size: int, batch: int, rounds: int, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    system = build_system(name, study.model, weights="").to(device)  # pretrained weights would not change the time
    step = make_step(system, study, size, batch, device)
    step(None)
    untimed: list[float] = []
    timed: list[dict[tuple[str, str], float]] = []
    for _ in range(rounds):
        untimed.append(time_call(lambda: step(None), device))
        timer = PartTimer(device)
        with timed_parts(system, timer):
            step(timer)
        timed.append(timer.milliseconds())
    rows = []
    for part in PARTS:
        row = {phase: median(t.get((part, phase), 0.0) for t in timed) for phase in ("forward_ms", "backward_ms")}
        rows += [{"part": part} | row] if any(row.values()) else []
    system.zero_grad(set_to_none=True)  # gradients that exist at the start would not count
    memory = peak_memory(lambda: step(None), device)
    step_ms = median(untimed)
    facts = {"system": name, "size": size, "batch": batch, "backend": system.backend, "parts": rows, "step_ms": step_ms}
    return facts | {"exams_per_second": 1e3 * batch / step_ms, "peak_memory_mb": memory}
