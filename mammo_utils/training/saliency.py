"""Saliency maps of a trained system, for positive breasts whose lesions are outlined.

The maps need images and gradients, so they are made where a run is trained; `evaluation.saliency` scores them from the
run's file. Each map explains the log-odds of the last class of one breast (malignant, or the highest BI-RADS category)
as a function of the outlined view, with the exam's other views as they are. The methods are those of captum: Grad-CAM
(Selvaraju et al., ICCV 2017) on the encoder's last map; integrated gradients (Sundararajan et al., ICML 2017); and
occlusion (Zeiler and Fergus, ECCV 2014) of the windows of a grid. The last two replace tissue by air.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_utils.images.store import Outline
from mammo_utils.io import display_path
from mammo_utils.models.encoders import Encoder
from mammo_utils.models.system import System
from mammo_utils.training.dataset import DEVIATION, MEAN, ExamSet
from mammo_utils.vocabulary import VIEWS

METHODS = {"grad_cam": "Grad-CAM", "integrated_gradients": "integrated gradients", "occlusion": "occlusion"}
RANDOM = "random_"  # before a method's name: its maps of the same system with random weights
STEPS = 16  # of the integral
WINDOWS = 8  # of the occlusion grid, per side
LARGEST = 128  # pixels per side of the maps and images that are kept


@dataclass(frozen=True)
class SaliencyMaps:
    """The maps of n outlined views, one breast each.

    Attributes:
        exams: (n,) research IDs.
        groups: (n,) patients.
        views: (n,) views.
        kinds: (n,) kind of the largest lesion.
        images: (n, s, s) uint8, as stored, averaged to at most LARGEST pixels per side.
        masks: (n, s, s) bool, inside an outline.
        maps: Method, or RANDOM and a method -> (n, h, w) float32 in the method's own resolution, in log-odds.
    """

    exams: tuple[str, ...]
    groups: tuple[str, ...]
    views: tuple[str, ...]
    kinds: tuple[str, ...]
    images: np.ndarray
    masks: np.ndarray
    maps: dict[str, np.ndarray]


class BreastOdds(nn.Module):
    """The log-odds of one breast's last class, (n,), as a function of n versions of one of its views, (n, 3, H, W).

    Args:
        model: The system in eval mode.
        features: (4, D), the exam's encoded views, what `System.encode_views` returns.
        present: (4,) bool.
        view: Index of the view that varies.
    """

    def __init__(self, model: System, features: Tensor, present: Tensor, view: int):
        super().__init__()
        self.model, self.features, self.present, self.view = model, features, present, view
        self.map = _Map(model.encoders[view % len(model.encoders)])  # a module: captum hooks its output

    def forward(self, images: Tensor) -> Tensor:
        """Classify the exam with each of the images as the view."""
        v = self.features.repeat(len(images), 1, 1)
        v = torch.cat([v[:, : self.view], self.map(images).mean((2, 3))[:, None], v[:, self.view + 1 :]], dim=1)
        logits, _ = self.model.classify(v, self.present.repeat(len(images), 1))
        own = next(iter(logits.values()))[:, self.view // 2]  # (n, K)
        return own[:, -1] - own[:, :-1].logsumexp(1)


class _Map(nn.Module):
    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.feature_map(images)


def explain(odds: BreastOdds, image: Tensor, batch_size: int) -> dict[str, np.ndarray]:
    """Explain a breast's log-odds by each method, in the method's own resolution: method -> (h, w).

    Args:
        odds: The function to be explained.
        image: (1, 3, S, S), normalised.
        batch_size: Images per pass.
    """
    # importing captum takes most of a second, which only a training should pay
    from captum.attr import FeatureAblation, IntegratedGradients, LayerGradCam

    size = image.shape[-1]
    air = ((0 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).to(image).view(1, 3, 1, 1).expand_as(image)
    image = image.detach().clone().requires_grad_()
    cam = LayerGradCam(odds, odds.map).attribute(image)[0, 0]
    gradients = IntegratedGradients(odds).attribute(image, air, n_steps=STEPS, internal_batch_size=batch_size)
    side = min(size, LARGEST)
    summed = F.adaptive_avg_pool2d(gradients.sum(1), side)[0] * (size / side) ** 2
    window = -(-size // WINDOWS)
    number = torch.arange(size, device=image.device) // window
    grid = number[:, None] * (number[-1] + 1) + number + 1  # (S, S), windows from 1
    seen = grid[(image.detach()[0] != air[0]).any(0)]
    windows = torch.isin(grid, seen) * grid  # those without tissue are all number 0, and change nothing
    windows = windows.unique(return_inverse=True)[1].view(1, 1, size, size)
    with torch.no_grad():
        ablated = FeatureAblation(odds).attribute(image, air, feature_mask=windows, perturbations_per_eval=batch_size)
    maps = {"grad_cam": cam, "integrated_gradients": summed, "occlusion": ablated[0, 0, ::window, ::window]}
    return {name: maps[name].detach().float().cpu().numpy() for name in METHODS}


def outlined_views(
    exams: ExamSet, outlines: dict[tuple[str, str], list[Outline]], task: str, limit: int
) -> list[tuple[int, int]]:
    """Choose the first `limit` outlined views of positive breasts, as (position of the exam, index of the view).

    Args:
        exams: The exams.
        outlines: (exam, view) -> its outlines.
        task: "diagnosis" or "birads"; a breast of its last class is positive.
        limit: The largest number of views.
    """
    last = 1 if task == "diagnosis" else len(exams.categories) - 1
    found = [
        (position, view)
        for position, name in enumerate(exams.names)
        for view, of in enumerate(VIEWS)
        if exams.present[position, view] and exams.labels[task][position, view // 2] == last and (name, of) in outlines
    ]
    return found[:limit]


def saliency_maps(
    model: System,
    untrained: System,
    exams: ExamSet,
    chosen: list[tuple[int, int]],
    outlines: dict[tuple[str, str], list[Outline]],
    batch_size: int,
) -> SaliencyMaps:
    """Explain the trained system and one with random weights on the same views.

    Args:
        model: The trained system, in eval mode.
        untrained: The system with random weights, in eval mode.
        exams: The exams.
        chosen: What `outlined_views` returned for them.
        outlines: (exam, view) -> its outlines.
        batch_size: Exams at a time in training. A pass takes half as many images, because it is in float32.
    """
    maps: dict[str, list[np.ndarray]] = {}
    images, masks, kinds = [], [], []
    for position, view in chosen:
        batch = exams.batch(torch.tensor([position]))
        for prefix, system in (("", model), (RANDOM, untrained)):
            system.requires_grad_(False)  # gradients of the weights would take a third of the time
            encoded = system.encode_views(batch.images, batch.present)[0]
            odds = BreastOdds(system, encoded, batch.present[0], view)
            for name, found in explain(odds, batch.images[0, view][None], max(1, len(VIEWS) * batch_size // 2)).items():
                maps.setdefault(prefix + name, []).append(found)
            system.requires_grad_(True)
        pixels = exams.images[exams.rows[position, view]].cpu()
        side = min(len(pixels), LARGEST)
        lesions = sorted(outlines[exams.names[position], VIEWS[view]], key=lambda lesion: -lesion.area)
        images.append(F.adaptive_avg_pool2d(pixels[None].float(), side)[0].round().byte().numpy())
        masks.append(draw_mask([lesion.points for lesion in lesions], len(pixels), side))
        kinds.append(lesions[0].kind)
    return SaliencyMaps(
        tuple(exams.names[position] for position, _ in chosen),
        tuple(exams.groups[position] for position, _ in chosen),
        tuple(VIEWS[view] for _, view in chosen),
        tuple(kinds),
        np.stack(images),
        np.stack(masks),
        {name: np.stack(found) for name, found in maps.items()},
    )


def draw_mask(outlines: list[np.ndarray], size: int, side: int) -> np.ndarray:
    """Fill outlines in a mask (side, side) bool.

    Args:
        outlines: Points (n, 2), x and y in pixels.
        size: Pixels per side of the image that they belong to.
        side: Pixels per side of the mask.
    """
    mask = Image.new("1", (side, side))
    for points in outlines:
        scaled = (np.asarray(points) + 0.5) * side / size - 0.5
        ImageDraw.Draw(mask).polygon([tuple(point) for point in scaled.tolist()], fill=1, outline=1)
    return np.array(mask)


def save_maps(found: SaliencyMaps, path: Path) -> None:
    """Write the maps as safetensors; the IDs, views and kinds of lesions are in the file's metadata."""
    tensors = {name: torch.from_numpy(values).contiguous() for name, values in found.maps.items()}
    tensors |= {"images": torch.from_numpy(found.images), "masks": torch.from_numpy(found.masks)}
    names = {name: json.dumps(getattr(found, name)) for name in ("exams", "groups", "views", "kinds")}
    save_file(tensors, path, names)


def load_maps(path: Path) -> SaliencyMaps:
    """Read the maps of a run. Raises ValueError, naming the file, if it holds something else."""
    keys = [prefix + name for prefix in ("", RANDOM) for name in METHODS]
    try:
        with safe_open(path, "np") as file:
            names = {name: json.loads((file.metadata() or {})[name]) for name in ("exams", "groups", "views", "kinds")}
            images, masks, *maps = (file.get_tensor(name) for name in ("images", "masks", *keys))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{display_path(path)} holds no saliency maps ({error}); train the run again.") from None
    if {len(values) for values in (*names.values(), images, masks, *maps)} != {len(images)}:
        raise ValueError(f"{display_path(path)} holds maps of other numbers of views; train the run again.")
    return SaliencyMaps(
        *(tuple(map(str, names[name])) for name in ("exams", "groups", "views", "kinds")),
        images,
        masks.astype(bool),
        dict(zip(keys, maps, strict=True)),
    )
