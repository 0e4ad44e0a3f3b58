"""Augmentation of §3.1, batched on the device: one affine map per view, one flip per exam."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from mammo_utils.config import Augmentation


def draw_affine_maps(exams: int, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Draw the maps of one epoch, (exams, 4, 2, 3), for `sample_affine`.

    Each view is rotated by up to ±rotation degrees, shifted by up to ±translation of the side in x and in y, and
    scaled by 1 ± scale. With probability `flip` all views of an exam are then mirrored left to right.

    Args:
        exams: Number of exams.
        settings: Ranges of the draws.
        generator: CPU generator; the draws depend on its state alone.
    """

    def uniform(limit: float) -> torch.Tensor:
        return (2 * torch.rand(exams, 4, generator=generator) - 1) * limit

    angle = uniform(math.radians(settings.rotation))
    shift_x, shift_y = uniform(2 * settings.translation), uniform(2 * settings.translation)  # the side is 2 long
    scale = 1 + uniform(settings.scale)
    mirror = torch.where(torch.rand(exams, 1, generator=generator) < settings.flip, -1.0, 1.0)
    return affine_maps(angle, shift_x, shift_y, scale, mirror)


def affine_maps(angle, shift_x, shift_y, scale, mirror) -> torch.Tensor:
    """Maps (..., 2, 3) from output to input coordinates, both from -1 to 1.

    The image is scaled and rotated clockwise about its centre, shifted, then mirrored. The maps undo that in the
    opposite order, because sampling looks up where each output pixel came from.

    Args:
        angle: Radians, clockwise.
        shift_x: Shift to the right; the image is 2 wide.
        shift_y: Shift down.
        scale: Factor of the size.
        mirror: -1 to mirror left to right, else 1.
    """
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    top = torch.stack([cosine * mirror, sine.expand_as(cosine), -(cosine * shift_x + sine * shift_y)], -1)
    bottom = torch.stack([-sine * mirror, cosine, sine * shift_x - cosine * shift_y], -1)
    return torch.stack([top, bottom], -2)


def sample_affine(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Resample images (n, S, S) through maps (n, 2, 3): bilinear, 0 outside the image."""
    grid = F.affine_grid(maps, [len(images), 1, *images.shape[-2:]], align_corners=False)
    return F.grid_sample(images.unsqueeze(1), grid, align_corners=False).squeeze(1)
