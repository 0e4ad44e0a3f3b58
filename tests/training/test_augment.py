import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine, hflip

from mammo_utils.config import Augmentation
from mammo_utils.training.augment import affine_maps, draw_affine_maps, sample_affine


@pytest.mark.parametrize("mirror", [1.0, -1.0])
@pytest.mark.parametrize(("angle", "shift", "scale"), [(7, (3, -2), 1.04), (-10, (0, 5), 0.95), (0, (0, 0), 1)])
def test_map_is_torchvisions_affine_then_flip(angle, shift, scale, mirror):
    """Turn, scale and shift agree in size and in direction with an independent implementation."""
    torch.manual_seed(0)
    side = 64
    image = torch.nn.functional.avg_pool2d(torch.rand(1, 1, side, side), 5, 1, 2)[0]  # (1, S, S), smooth
    maps = affine_maps(
        torch.tensor([math.radians(angle)]),
        torch.tensor([2 * shift[0] / side]),
        torch.tensor([2 * shift[1] / side]),
        torch.tensor([scale]),
        torch.tensor([mirror]),
    )
    expected = affine(image, angle, list(shift), scale, [0.0], InterpolationMode.BILINEAR)
    expected = hflip(expected) if mirror < 0 else expected
    torch.testing.assert_close(sample_affine(image, maps), expected, atol=1e-5, rtol=0)


def test_ranges_are_the_papers_and_the_flip_is_one_draw_an_exam():
    settings = Augmentation()
    maps = draw_affine_maps(5000, settings, torch.Generator().manual_seed(0))
    assert maps.shape == (5000, 4, 2, 3)
    determinant = torch.linalg.det(maps[..., :2])
    mirror = torch.sign(determinant)
    assert (mirror == mirror[:, :1]).all(), "all views of an exam are flipped alike"
    assert abs((mirror[:, 0] < 0).float().mean() - 0.5) < 0.03
    scale = determinant.abs().rsqrt()
    assert scale.min() >= 0.95 - 1e-6 and scale.max() <= 1.05 + 1e-6
    assert scale.min() < 0.951 and scale.max() > 1.049
    linear = maps[..., :2].clone()
    linear[..., 0] *= mirror[..., None]
    angle = torch.rad2deg(torch.atan2(linear[..., 0, 1], linear[..., 0, 0])).abs()
    assert 9.9 < angle.max() <= 10.001
    shift = torch.linalg.solve(linear, -maps[..., 2:]).abs() / 2  # of the side
    assert 0.0499 < shift.max() <= 0.05001


def test_no_augmentation_is_the_identity():
    still = Augmentation(rotation=0, translation=0, scale=0, flip=0)
    maps = draw_affine_maps(3, still, torch.Generator().manual_seed(0))
    images = torch.rand(12, 17, 17)
    torch.testing.assert_close(sample_affine(images, maps.flatten(0, 1)), images)
