"""A model as one program of `torch.export`, which runs without this package: `model.pt2`.

The program is for others; nothing here loads one. The compiled scan is replaced by a plain one in two passes, so that
the graph has torch's own operators alone, and a number of them that grows with the root of the number of pixels.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from mammo_utils.io import atomic_write
from mammo_utils.models.kernels import cpu
from mammo_utils.models.system import System
from mammo_utils.predict.model import Model
from mammo_utils.predict.package import describe
from mammo_utils.training.dataset import DEVIATION, MEAN


class Predictor(nn.Module):
    """The systems of a model as one function of prepared images; its outputs are means over the systems.

    Args:
        systems: In eval mode.
        scalings: Temperature and shift of each system's log-odds; the temperature is None without calibration.
    """

    def __init__(self, systems: Sequence[System], scalings: Sequence[tuple[float | None, float]]):
        super().__init__()
        self.systems, self.scalings = nn.ModuleList(systems), tuple(scalings)
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, images: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Predict exams.

        Args:
            images: (batch, 4, S, S) uint8, as a study's image store holds them, in the order of `VIEWS`.
            present: (batch, 4) bool. What an absent view holds has no influence.

        Returns:
            Task -> probabilities (batch, 2, classes) for L and R; "calibrated" (batch, 2), the scaled P(malignant), if
            the model is calibrated; and "weights" (batch, 4) of the views.
        """
        grey = (images[:, :, None] / 255.0 - self.mean) / self.deviation  # (batch, 4, 3, S, S)
        grey = grey.masked_fill(~present[:, :, None, None, None], 0.0)
        found: dict[str, list[Tensor]] = {}
        for system, (temperature, shift) in zip(self.systems, self.scalings, strict=True):
            logits, weights = system.classify(_encode_all(system, grey), present)
            outputs = {task: values.softmax(-1) for task, values in logits.items()} | {"weights": weights}
            if temperature is not None:
                odds = logits["diagnosis"][..., 1] - logits["diagnosis"][..., 0]
                outputs["calibrated"] = torch.sigmoid(odds / temperature + shift)
            for name, values in outputs.items():
                found.setdefault(name, []).append(values)
        return {name: torch.stack(values).mean(0) for name, values in found.items() if len(values) == len(self.systems)}


def _encode_all(system: System, images: Tensor) -> Tensor:
    """Encode all views, (batch, 4, D), where `System.encode_views` reads on the CPU which of them count."""
    n, parts = len(system.encoders), []
    for i, encoder in enumerate(system.encoders):  # view i belongs to encoder i % n
        own = images[:, i::n]  # (batch, 4 / n, 3, S, S)
        parts.append(encoder(own.flatten(0, 1)).unflatten(0, (-1, 4 // n)))
    return torch.stack(parts, dim=2).flatten(1, 2)  # (batch, 4 / n, n, D) -> (batch, 4, D)


def _scan_in_chunks(u, delta, A, B, C, W, D, bias, use_softplus, path):
    """The output of `kernels.cpu.scan` as SS2D calls it, without W, in torch's own operators."""
    # The sequence is cut into about as many chunks as each has steps. They are scanned side by side: first from 0, for
    # the state at the end of each, then from that of the chunk before. What only a gradient needs is left empty.
    batch, K, length, channels = delta.shape
    size = math.isqrt(length - 1) + 1
    chunks = -(-length // size)

    def cut(x: Tensor) -> tuple[Tensor, ...]:  # (batch, K, L, F) by pixel -> `size` steps (batch, K, chunks, F)
        x = x.gather(2, path[None, :, :, None].expand(batch, -1, -1, x.shape[3]))
        return F.pad(x, (0, 0, 0, chunks * size - length)).unflatten(2, (chunks, size)).unbind(3)

    def advance(h: Tensor, u_t: Tensor, delta_t: Tensor, B_t: Tensor) -> Tensor:  # h: (batch, K, chunks, D, N)
        return torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t[..., None, :]

    A = A.transpose(1, 2)[:, None]  # (K, N, D) -> (K, 1, D, N)
    delta = F.softplus(delta + bias[:, None])
    steps = list(zip(*map(cut, (u.expand(-1, K, -1, -1), delta, B, C)), strict=True))
    h = delta.new_zeros(batch, K, chunks, channels, A.shape[3])
    for u_t, delta_t, B_t, _ in steps:
        h = advance(h, u_t, delta_t, B_t)
    decay = torch.exp(sum(delta_t for _, delta_t, _, _ in steps)[..., None] * A)  # of a whole chunk
    starts = [torch.zeros_like(h[:, :, 0])]
    for i in range(chunks - 1):
        starts.append(decay[:, :, i] * starts[-1] + h[:, :, i])
    h, ys = torch.stack(starts, dim=2), []
    for u_t, delta_t, B_t, C_t in steps:
        h = advance(h, u_t, delta_t, B_t)
        ys.append((h * C_t[..., None, :]).sum(-1))
    y = torch.stack(ys, dim=3).flatten(2, 3)  # (batch, K, chunks * size, D) by step
    y = y.gather(2, path.argsort(1)[None, :, :, None].expand(batch, -1, -1, channels))  # (batch, K, L, D) by pixel
    return (y + D[:, None] * u).sum(1, keepdim=True), u.new_empty(0), u.new_empty(0)


def make_program(predictor: Predictor, size: int) -> ExportedProgram:
    """Export a copy of a predictor in eval mode, for any number of exams with images of `size` pixels a side."""
    predictor = copy.deepcopy(predictor).requires_grad_(False)  # else the program keeps what a gradient needs
    example = torch.zeros(2, 4, size, size, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.bool)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program = torch.export.export(predictor, example, dynamic_shapes=({0: batch}, {0: batch}))
        return program.run_decompositions({cpu.scan.default: _scan_in_chunks})


def write_program(model: Model, path: str | Path) -> None:
    """Write a model as a program, with its model card in the extra file `README.md`; replaces a file."""
    predictor = Predictor(model.systems, [(member.temperature, member.shift) for member in model.card.members])
    program = make_program(predictor.eval(), model.card.run.images.size)
    with atomic_write(Path(path)) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files={"README.md": describe(model.card)})
