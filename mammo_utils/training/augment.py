"""Augmentation of §3.1, batched on the device: one affine map a view, one flip an exam."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from mammo_utils.config import Augmentation


def affine_parameters(exams: int, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Draw the maps of one epoch, (exams, 4, 2, 3), for :func:`sample_affine`.

    Each view is turned by up to ±rotation degrees, shifted by up to ±translation of the side in x and in y
    and scaled by 1 ± scale; with probability `flip` all views of an exam are then mirrored left to right.
    """

    def uniform(reach: float) -> torch.Tensor:
        return (2 * torch.rand(exams, 4, generator=generator) - 1) * reach

    angle = uniform(math.radians(settings.rotation))
    shift_x, shift_y = (
        uniform(2 * settings.translation),
        uniform(2 * settings.translation),
    )  # the side is 2 long
    scale = 1 + uniform(settings.scale)
    mirror = torch.where(torch.rand(exams, 1, generator=generator) < settings.flip, -1.0, 1.0)
    return affine_maps(angle, shift_x, shift_y, scale, mirror)


def affine_maps(angle, shift_x, shift_y, scale, mirror) -> torch.Tensor:
    """Maps (..., 2, 3) from where a pixel is drawn to where it is read, in coordinates from -1 to 1.

    The picture is scaled and turned clockwise by `angle` (radians) about its centre, shifted, then mirrored;
    reading undoes that in the opposite order.
    """
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    top = torch.stack([cosine * mirror, sine.expand_as(cosine), -(cosine * shift_x + sine * shift_y)], -1)
    bottom = torch.stack([-sine * mirror, cosine, sine * shift_x - cosine * shift_y], -1)
    return torch.stack([top, bottom], -2)


def sample_affine(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Draw images (n, S, S) through maps (n, 2, 3), bilinear, 0 outside the picture."""
    grid = F.affine_grid(maps, [len(images), 1, *images.shape[-2:]], align_corners=False)
    return F.grid_sample(images.unsqueeze(1), grid, align_corners=False).squeeze(1)
