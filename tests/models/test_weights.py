"""Pretrained weights: from a file, checked, never unpickled; one sentence where they are not to be had."""

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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file(tmp_path, state, suffix):
    file = tmp_path / f"mine{suffix}"
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    assert torch.equal(first(ResNet(18, file)), state["conv1.weight"])
    assert torch.equal(first(Hybrid(weights=str(file))), state["conv1.weight"])


def named(folder, state, digits=None):
    """Save under a name with the digits of the file's hash, or with wrong ones."""
    torch.save(state, folder / "x.pth")
    digits = digits or hashlib.sha256((folder / "x.pth").read_bytes()).hexdigest()[:8]
    return (folder / "x.pth").rename(folder / f"resnet18-{digits}.pth")


def test_the_hash_in_the_name_is_checked(tmp_path, state):
    ResNet(18, named(tmp_path, state))
    with pytest.raises(WeightsError, match=r"is damaged: its SHA-256 begins with .* not 00000000; delete it"):
        ResNet(18, named(tmp_path, state, "00000000"))


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
    good = named(tmp_path / "checkpoints", state)
    monkeypatch.setitem(URLS, 18, f"https://example.org/{good.name}")
    assert torch.equal(first(ResNet(18, "imagenet")), state["conv1.weight"])
    assert len(fetched) == 1
    assert torch.equal(first(ResNet(18, good.parent)), state["conv1.weight"]), "a folder of torchvision's files"


def test_offline_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        WeightsError, match=r"download https://.*resnet50-0676ba61.pth elsewhere and put .* into .*checkpoints"
    ):
        ResNet(50, "imagenet")


def test_files_that_do_not_fit(tmp_path, state):
    with pytest.raises(WeightsError, match="There is no weights file"):
        ResNet(18, tmp_path / "none.pth")
    torch.save(state, tmp_path / "eighteen.pth")
    with pytest.raises(WeightsError, match="does not hold the weights of torchvision's ResNet-50"):
        ResNet(50, tmp_path / "eighteen.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("text.pth", "text.safetensors"):
        with pytest.raises(WeightsError, match="is not a file of weights alone"):
            ResNet(18, tmp_path / name)


class Harm:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    (tmp_path / "harm.pth").write_bytes(pickle.dumps(Harm(), protocol=2))
    torch.save({"conv1.weight": Harm()}, tmp_path / "harm2.pth")
    for name in ("harm.pth", "harm2.pth"):
        with pytest.raises(WeightsError, match="is not a file of weights alone"):
            ResNet(18, tmp_path / name)
    assert "unpickled" not in capsys.readouterr().out
