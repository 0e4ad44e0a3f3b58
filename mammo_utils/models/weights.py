"""Pretrained weights, never unpickled: torchvision's ResNets from ImageNet, small encoders from synthetic patches."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from mammo_utils.io import project_root
from mammo_utils.provenance import file_hash

URLS = {18: ResNet18_Weights.IMAGENET1K_V1.url, 50: ResNet50_Weights.IMAGENET1K_V1.url}
PATCH_FOLDER = Path(__file__).parent / "patch_weights"
PATCH_WIDTH = 0.25  # `model.width` of the encoders that were pretrained on patches
PATCH_FILES = {  # written by `python -m mammo_utils.training.pretrain`
    "resnet18": "resnet18-54f08587.safetensors",
    "resnet50": "resnet50-02a2339a.safetensors",
    "vssm": "vssm-6acff1bd.safetensors",
    "hybrid": "hybrid-0da7504f.safetensors",
}


class WeightsError(ValueError):
    """Pretrained weights are missing, damaged or of another network; the message says what to do."""


def load_resnet_weights(resnet: nn.Module, depth: int, weights: str | Path) -> None:
    """Load pretrained weights into a torchvision ResNet.

    A file is accepted if its SHA-256 begins with the digits in its own name or, if the name has none, with those of
    torchvision's published file. To use other weights, put the first digits of their SHA-256 (at least 8) at the end of
    the file's name, as in `mine-1a2b3c4d.pth`.

    Args:
        resnet: ResNet-18 or ResNet-50.
        depth: 18 or 50.
        weights: "imagenet": torchvision's first ImageNet weights, downloaded once into torch's own folder. Otherwise a
            `.pth` or `.safetensors` file, or a folder that holds the file under torchvision's name; relative paths
            start from the project's folder.

    Raises:
        WeightsError: The weights are missing, damaged or of another network.
    """
    name = URLS[depth].rsplit("/", 1)[1]
    if str(weights) == "imagenet":
        file = Path(torch.hub.get_dir()) / "checkpoints" / name
        if not file.is_file():
            _download(URLS[depth], file)
    else:
        file = project_root() / weights
        file = file / name if file.is_dir() else file
        if not file.is_file():
            raise WeightsError(
                f"There is no weights file {file}; download {URLS[depth]} elsewhere and put {name} there, "
                f"or set model.weights to 'imagenet' or ''."
            )
    _check_hash(file, published=_hash_in_name(name))
    try:
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes, torch's restricted unpickler raises anything, even KeyError
        raise WeightsError(f"{file} is not a file of weights that torch or safetensors can read.") from error
    try:
        resnet.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:  # other tensors, not a dict, keys that are no strings
        raise WeightsError(f"{file} does not hold the weights of torchvision's ResNet-{depth}.") from error


def load_patch_weights(encoder: nn.Module, name: str) -> None:
    """Load the weights of an encoder that was pretrained on synthetic patches, see `training.pretrain`.

    Args:
        encoder: Of width 0.25, with the default number of blocks.
        name: Key of `PATCH_FILES`.

    Raises:
        WeightsError: The file is damaged, or the encoder is another one than the pretrained one.
    """
    file = PATCH_FOLDER / PATCH_FILES[name]
    _check_hash(file, published=_hash_in_name(file.name))
    try:
        encoder.load_state_dict(load_file(file))  # half precision in the file, single in the encoder
    except RuntimeError as error:
        raise WeightsError(
            f"model.weights is 'patches', which are weights of a {name} of width {PATCH_WIDTH} with the default blocks "
            f"and cut; set model.width to {PATCH_WIDTH} and leave out the others, or set model.weights to ''."
        ) from error


def _download(url: str, file: Path) -> None:
    """Download torchvision's file, its hash checked, completely or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=_hash_in_name(file.name), progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights could not be downloaded ({error}); download {url} elsewhere and put {file.name} "
            f"into {file.parent}, or set model.weights to the file's path."
        ) from error


def _check_hash(file: Path, published: str) -> None:
    found, named = file_hash(file), _hash_in_name(file.name)
    if found.startswith(named or published):
        return
    if named == published:
        raise WeightsError(
            f"{file} is damaged: its SHA-256 begins with {found[:8]}, not {named}; delete it and download it again."
        )
    raise WeightsError(
        f"{file} is not torchvision's published file, whose SHA-256 begins with {published}; to use it anyway, "
        f"give it a name that ends in -{found[:8]}{file.suffix}."
    )


def _hash_in_name(name: str) -> str | None:
    """Return the digits in a name such as resnet18-f37072fd.pth."""
    match = re.search(r"-([0-9a-f]{8,64})\.(?:pth|safetensors)$", name)
    return match.group(1) if match else None
