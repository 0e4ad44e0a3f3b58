"""A model as one zip file: weights as safetensors, its card (settings, calibration, ranges), a text and hashes.

A package is data from elsewhere: its members are bounded in number and size, have plain names, are read into memory and
never extracted, and nothing in it is unpickled. The hashes find damage; they are no signature.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from mammo_utils.io import atomic_write, display_path, plain_values
from mammo_utils.predict.model import Card, Model, on_cpu
from mammo_utils.study import describe_mistake
from mammo_utils.training.run import build

CARD, TEXT, HASHES, WEIGHTS = "model.json", "README.md", "hashes.json", "weights-{}.safetensors"
NAME = re.compile(r"model\.json|README\.md|hashes\.json|weights-\d+\.safetensors")
FAULTS = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OSError, EOFError, zipfile.BadZipFile)
FAULTS = (*FAULTS, zlib.error, SafetensorError)
MOST_FILES, MOST_BYTES, MOST_TEXT = 40, 4 * 2**30, 2**20


def write_package(model: Model, path: str | Path) -> str:
    """Write a model as a zip file, replacing one; the same model gives the same bytes. Return its SHA-256."""
    card = model.card.model_dump(mode="json")
    for member in card["members"]:
        run = member["run"]  # without paths of this machine
        run["data"]["folder"], run["model"]["weights"] = "", Path(run["model"]["weights"]).name
    files = {CARD: _json(card), TEXT: describe(model.card).encode()}
    for number, system in enumerate(model.systems):
        tensors = {name: tensor.contiguous() for name, tensor in system.state_dict().items()}
        files[WEIGHTS.format(number)] = save(tensors)
    files[HASHES] = _json({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    with atomic_write(Path(path)) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # without a date, not compressed
        return hashlib.sha256(temporary.read_bytes()).hexdigest()


def read_package(path: Path) -> Model:
    """Read a package. Raises ValueError, naming the package and what is wrong with it."""
    try:
        files = _read_files(path)
        hashes = json.loads(files.pop(HASHES))
        if hashes != {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}:
            raise ValueError("its files are not those that it was made of")
        card = Card.model_validate_json(files[CARD])
        systems = []
        for number, member in enumerate(card.members):
            settings = member.run.model.model_copy(update={"weights": "", "backend": "auto"})
            system = build(member.run.model_copy(update={"model": settings}))
            system.load_state_dict(load(files[WEIGHTS.format(number)]))
            systems.append(on_cpu(system))
        describe(card)  # what it lacks is found here
        return Model(card, tuple(systems))
    except ValidationError as error:
        raise ValueError(f"{display_path(path)} is of another version: {describe_mistake(error, Card)}") from None
    except FAULTS as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise ValueError(f"{display_path(path)} is no intact package: {reason}; copy it again.") from None


def _read_files(path: Path) -> dict[str, bytes]:
    """The members of a package by name, within bounds."""
    with zipfile.ZipFile(path) as archive:
        found = {info.filename: info for info in archive.infolist()}
        size = sum(info.file_size for info in found.values())
        if (
            len(found) < len(archive.infolist())
            or len(found) > MOST_FILES
            or size > min(MOST_BYTES, path.stat().st_size)
        ):
            raise ValueError("it has too many files, two of one name, or is compressed or too large")
        for name, info in found.items():
            if not NAME.fullmatch(name) or (name.endswith(("json", "md")) and info.file_size > MOST_TEXT):
                raise ValueError(f"it has a file {name[:40]!r} of {info.file_size} bytes, which is not accepted")
        return {name: archive.read(info) for name, info in found.items()}  # never more than it declares


def describe(card: Card) -> str:
    """The model card as text: what the model is, and how well it does."""
    lines = [
        "# Model card",
        "",
        *card.statements,
        "",
        "Predict exams: `python -m mammo_utils.predict FILE EXAMS --out DIR`",
    ]
    for member in card.members:
        part = member.metrics["reported"]
        for task, scores in member.metrics["parts"][part].items():
            lines.append(f"- {member.run.id}, {task}: AUC {scores['auc']} ({part}, {scores['n_breasts']} breasts)")
        lines.append(f"- {member.run.id}, calibration: temperature {member.temperature}, shift {member.shift}")
    lines += [f"- Training images, {name}: {low:g} to {high:g}" for name, (low, high) in card.ranges.items()]
    return "\n".join(lines) + "\n"


def _json(values: dict) -> bytes:
    return (json.dumps(plain_values(values), indent=2, allow_nan=False) + "\n").encode()
