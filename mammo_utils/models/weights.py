"""ImageNet weights of torchvision's ResNets: downloaded, or from a local file, never unpickled."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from mammo_utils.io import project_root

URLS = {18: ResNet18_Weights.IMAGENET1K_V1.url, 50: ResNet50_Weights.IMAGENET1K_V1.url}


class WeightsError(ValueError):
    """Pretrained weights are missing, damaged or of another network; the message says what to do."""


def load_resnet_weights(resnet: nn.Module, depth: int, weights: str | Path) -> None:
    """Load `weights` into a torchvision ResNet.

    weights: ``"imagenet"``, torchvision's first ImageNet weights, downloaded once into torch's own folder; a
    local ``.pth`` or ``.safetensors`` file; or a folder that holds the file under torchvision's name. Relative
    paths are read from the project's folder. A file is taken whose SHA-256 begins with the digits of torchvision's
    published file, or with the digits in its own name: whoever renames other weights so says which they mean.
    Raises WeightsError with one sentence.
    """
    name = URLS[depth].rsplit("/", 1)[1]
    if str(weights) == "imagenet":
        file = Path(torch.hub.get_dir()) / "checkpoints" / name
        if not file.is_file():
            download(URLS[depth], file)
    else:
        file = project_root() / weights
        file = file / name if file.is_dir() else file
        if not file.is_file():
            raise WeightsError(
                f"There is no weights file {file}; download {URLS[depth]} elsewhere and put {name} there, "
                f"or set model.weights to 'imagenet' or ''."
            )
    check_hash(file, hash_in_name(name))
    state = read_state(file)
    try:
        resnet.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:  # other tensors; a list or tensor; keys not words
        raise WeightsError(f"{file} does not hold the weights of torchvision's ResNet-{depth}.") from error


def download(url: str, file: Path) -> None:
    """Fetch torchvision's file, its hash checked, whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_in_name(file.name), progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights could not be downloaded ({error}); download {url} elsewhere and put {file.name} "
            f"into {file.parent}, or set model.weights to the file's path."
        ) from error


def check_hash(file: Path, published: str) -> None:
    """Raise WeightsError where a file's SHA-256 begins neither with `published` nor with the digits in its name."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    named = hash_in_name(file.name)
    if found.startswith(named or published):
        return
    if named == published:
        raise WeightsError(
            f"{file} is damaged: its SHA-256 begins with {found[:8]}, not {named}; delete it and download it again."
        )
    raise WeightsError(
        f"{file} is not torchvision's published file, whose SHA-256 begins with {published}; to use it all the same, "
        f"give it a name that ends in -{found[:8]}{file.suffix}."
    )


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file, nothing but tensors unpickled."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's restricted unpickler raises anything, even KeyError, on foreign bytes
        raise WeightsError(f"{file} is not a file of weights alone that torch or safetensors can read.") from error


def hash_in_name(name: str) -> str | None:
    """The digits in a name such as resnet18-f37072fd.pth."""
    match = re.search(r"-([0-9a-f]{8,64})\.(?:pth|safetensors)$", name)
    return match.group(1) if match else None
