"""Where the time of a training step goes, part by part, for each system."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.measure import peak_memory, timed
from mammo_utils.config import Study
from mammo_utils.models import ss2d
from mammo_utils.models.encoders import Hybrid, ResNet
from mammo_utils.models.ss2d import SS2D, PatchEmbedding, PatchMerging, SSConvSSM
from mammo_utils.models.system import System, build_system
from mammo_utils.training.augment import draw_affine_maps
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.loop import make_optimizer, prepare_model
from mammo_utils.training.loss import total_loss
from mammo_utils.training.memory import autocast
from mammo_utils.vocabulary import SYSTEMS

BATCH, OPTIMISER, REST = "batch and augmentation", "clipping and optimiser", "gate, heads, loss, sums"
SCANS = "four scans"
PARTS = (
    BATCH, "ResNet stem", *(f"ResNet layer{i}" for i in range(1, 5)), "patches", "convolved halves",
    "scanned halves but scans", SCANS, REST, OPTIMISER,
)  # fmt: skip


class Clock:
    """Stamps where one part gives way to the next; a part's time is its own, without the parts inside it."""

    def __init__(self, device: torch.device):
        self.cuda, self.open, self.stamps = device.type == "cuda", [], []
        self.phase = "forward_ms"

    def stamp(self) -> None:
        label = self.open[-1] if self.open else REST
        if self.cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.stamps.append(((label, self.phase), now))

    def enter(self, label: str) -> None:
        self.open.append(label)
        self.stamp()

    def leave(self, label: str) -> None:
        if label in self.open:
            while self.open.pop() != label:  # one whose input needs no gradient never left by itself
                pass
        self.stamp()

    def begin(self, phase: str) -> None:
        self.open, self.phase = [], phase
        self.stamp()

    def milliseconds(self) -> dict[tuple[str, str], float]:
        if self.cuda:
            torch.cuda.synchronize()
        spent: dict[tuple[str, str], float] = defaultdict(float)
        for (key, start), (_, end) in zip(self.stamps, self.stamps[1:], strict=False):
            spent[key] += start.elapsed_time(end) if self.cuda else 1e3 * (end - start)
        return spent


class Border(torch.autograd.Function):
    """Nothing but a note, when the gradient comes by, that the backward of a part begins or has ended."""

    @staticmethod
    def forward(ctx, x, cross):
        ctx.cross = cross
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        ctx.cross()
        return g, None


def spans(system: System) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(label, first module, last module) of each part; all blocks of a kind share a label."""
    for encoder in system.encoders:
        layers = {ResNet: "body", Hybrid: "cnn"}.get(type(encoder))
        if layers:
            children = dict(getattr(encoder, layers).named_children())
            yield "ResNet stem", children["conv1"], children["maxpool"]
            yield from ((f"ResNet {name}", m, m) for name, m in children.items() if name.startswith("layer"))
    for module in system.modules():
        if isinstance(module, PatchEmbedding | PatchMerging):
            yield "patches", module, module
        if isinstance(module, SSConvSSM):
            yield "convolved halves", module.convolutions, module.convolutions
        if isinstance(module, SS2D):
            yield "scanned halves but scans", module, module


@contextmanager
def watched(system: System, clock: Clock) -> Iterator[None]:
    """Within it, every part of `system` tells the clock when it begins and ends, forward and backward."""

    def enter(x: Tensor, label: str) -> Tensor:
        clock.enter(label)
        return Border.apply(x, lambda: clock.leave(label))

    def leave(y: Tensor, label: str) -> Tensor:
        y = Border.apply(y, lambda: clock.enter(label))
        clock.leave(label)
        return y

    def scan_paths(u: Tensor, *arguments: Tensor, **options: str) -> Tensor:
        return leave(original(enter(u, SCANS), *arguments, **options), SCANS)

    original = ss2d.scan_paths
    with ExitStack() as stack:
        for label, first, last in spans(system):
            before = first.register_forward_pre_hook(lambda m, x, label=label: (enter(x[0], label),))
            after = last.register_forward_hook(lambda m, x, y, label=label: leave(y, label))
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(patch.object(ss2d, "scan_paths", scan_paths))
        yield


def training_step(
    system: System, size: int, batch: int, study: Study, device: torch.device
) -> Callable[[Clock | None], None]:
    """One step of training on `batch` exams of noise, as the training loop does it, with all views present."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4 * batch, size, size), dtype=torch.uint8, generator=generator)
    classes = system.classes
    exams = ExamSet(
        names=tuple(map(str, range(batch))),
        groups=tuple(map(str, range(batch))),
        images=images.to(device),
        rows=torch.arange(4 * batch).view(batch, 4),
        labels={task: torch.randint(0, n, (batch, 2), generator=generator) for task, n in classes.items()},
        categories=(1, 5),
        device=device,
    )
    weights = {task: torch.ones(n, device=device) for task, n in classes.items()}
    settings = study.training
    prepare_model(system, settings)
    optimizer = make_optimizer(system, settings, 1e-5)
    maps = draw_affine_maps(batch, settings.augmentation, generator)
    system.train()

    def step(clock: Clock | None = None) -> None:
        begin, enter = (clock.begin, clock.enter) if clock else (lambda _: None, lambda _: None)
        begin("forward_ms")
        enter(BATCH)
        drawn = exams.batch(torch.arange(batch), maps)
        begin("forward_ms")
        with autocast(device, settings):
            logits, _ = system(drawn.images, drawn.present)
        loss = total_loss(logits, drawn.labels, weights, settings.task_weights.model_dump())
        begin("backward_ms")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        begin("forward_ms")
        enter(OPTIMISER)
        nn.utils.clip_grad_norm_(system.parameters(), settings.clip)
        optimizer.step()
        begin("forward_ms")

    return step


def step_of(name: str, study: Study, size: int, batch: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """The ledger of one system's training step: milliseconds of each part, forward and backward, their sum, the
    whole step without the clock, and the peak of memory above the weights. Medians over `rounds`, with the clock
    and without in turn, after one."""
    torch.manual_seed(0)
    system = build_system(name, study.model, weights="").to(device)  # which weights does not matter to the time
    step = training_step(system, size, batch, study, device)
    step(None)
    plain: list[float] = []
    found: list[dict[tuple[str, str], float]] = []
    for _ in range(rounds):
        plain.append(timed(lambda: step(None), device))
        clock = Clock(device)
        with watched(system, clock):
            step(clock)
        found.append(clock.milliseconds())
    rows = []
    for part in PARTS:
        row = {phase: median(f.get((part, phase), 0.0) for f in found) for phase in ("forward_ms", "backward_ms")}
        if any(row.values()):
            rows.append({"part": part} | row)
    system.zero_grad(set_to_none=True)  # else gradients, there at the start, would not count
    memory = peak_memory(lambda: step(None), device)
    return {
        "system": name, "size": size, "batch": batch, "backend": system.backend, "parts": rows,
        "step_ms": median(plain), "exams_per_second": 1e3 * batch / median(plain), "peak_memory_mb": memory,
    }  # fmt: skip


def steps(study: Study, size: int, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """:func:`step_of` for the six systems."""
    return [step_of(name, study, size, batch, rounds, device) for name in SYSTEMS]
