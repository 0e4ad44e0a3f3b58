"""Pretrained weights: from a file, checked, never unpickled; one sentence if they cannot be had."""

import hashlib
import pickle
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from mammo_utils.models.encoders import Hybrid, ResNet
from mammo_utils.models.weights import URLS, WeightsError


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(5)
    return resnet18().state_dict()


def first(encoder):
    return next(encoder.parameters())


def digits_of(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def vouched(file):
    """Rename a file so that its name ends in its hash, as unpublished weights must be named."""
    return file.rename(file.with_name(f"{file.stem}-{digits_of(file)}{file.suffix}"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file(tmp_path, state, suffix):
    file = tmp_path / f"mine{suffix}"
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    file = vouched(file)
    assert torch.equal(first(ResNet(18, file)), state["conv1.weight"])
    assert torch.equal(first(Hybrid(weights=str(file))), state["conv1.weight"])


@pytest.fixture
def published(tmp_path, state, monkeypatch):
    """A file that takes the place of torchvision's own, under its name."""
    torch.save(state, tmp_path / "resnet18.pth")
    file = vouched(tmp_path / "resnet18.pth")
    monkeypatch.setitem(URLS, 18, f"https://example.org/{file.name}")
    return file


def test_the_hash_is_checked_whatever_the_name(published, state):
    ResNet(18, published)
    renamed = published.rename(published.with_name("mine.pth"))
    ResNet(18, renamed)
    torch.save(state | {"fc.bias": torch.zeros(1000)}, renamed)
    with pytest.raises(WeightsError, match=r"is not torchvision's published file, .* ends in -[0-9a-f]{8}\.pth"):
        ResNet(18, renamed)
    ResNet(18, vouched(renamed))


def test_a_damaged_file(published):
    published.write_bytes(published.read_bytes() + b"0")
    with pytest.raises(WeightsError, match=r"is damaged: its SHA-256 begins with .*; delete it and download it again"):
        ResNet(18, published)


def test_imagenet_is_read_from_torchs_folder_or_downloaded(tmp_path, state, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fetched = []

    def fetch(url, target, hash_prefix, progress):
        fetched.append((url, hash_prefix))
        torch.save(state, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(WeightsError, match="is damaged"):  # what came is not what the name says
        ResNet(18, "imagenet")
    assert fetched == [(URLS[18], "f37072fd")]
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").rename(tmp_path / "checkpoints" / "resnet18.pth")
    good = vouched(tmp_path / "checkpoints" / "resnet18.pth")
    monkeypatch.setitem(URLS, 18, f"https://example.org/{good.name}")
    assert torch.equal(first(ResNet(18, "imagenet")), state["conv1.weight"])
    assert len(fetched) == 1
    assert torch.equal(first(ResNet(18, good.parent)), state["conv1.weight"]), "a folder of torchvision's files"


def test_no_network_gives_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        WeightsError, match=r"download https://.*resnet50-0676ba61.pth elsewhere and put .* into .*checkpoints"
    ):
        ResNet(50, "imagenet")


def test_a_folder_that_cannot_be_made_gives_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="could not be downloaded"):
        ResNet(18, "imagenet")


@pytest.mark.parametrize("held", [[torch.ones(2)], torch.ones(2), {1: torch.ones(2)}, {"conv1.weight": 3}])
def test_files_that_hold_something_else(tmp_path, held):
    torch.save(held, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not hold the weights of torchvision's ResNet-18"):
        ResNet(18, vouched(tmp_path / "x.pth"))


def test_unfit_files(tmp_path, state):
    with pytest.raises(WeightsError, match="There is no weights file"):
        ResNet(18, tmp_path / "none.pth")
    torch.save(state, tmp_path / "eighteen.pth")
    with pytest.raises(WeightsError, match="does not hold the weights of torchvision's ResNet-50"):
        ResNet(50, vouched(tmp_path / "eighteen.pth"))
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("text.pth", "text.safetensors"):
        with pytest.raises(WeightsError, match="is not a file of weights that torch or safetensors can read"):
            ResNet(18, vouched(tmp_path / name))


class Harm:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    (tmp_path / "harm.pth").write_bytes(pickle.dumps(Harm(), protocol=2))
    torch.save({"conv1.weight": Harm()}, tmp_path / "harm2.pth")
    for name in ("harm.pth", "harm2.pth"):
        with pytest.raises(WeightsError, match="is not a file of weights that torch or safetensors can read"):
            ResNet(18, vouched(tmp_path / name))
    assert "unpickled" not in capsys.readouterr().out
