"""Copies a study's pictures into the project's figures/, with what each was made from.

python -m mammo_utils.workflow.publish config/demo.yaml [settings ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from mammo_utils.config import ParameterError, Study, load_study
from mammo_utils.io import atomic_write, project_root, read_json, write_json
from mammo_utils.plots.save import MANIFEST, read_manifest
from mammo_utils.provenance import file_hash, hash_of, source_hash


def publish(study: Study, study_file: str) -> list[Path]:
    """Replace ``figures/*.png`` and the manifest by this study's; returns the pictures."""
    target = project_root() / "figures"
    entries = read_manifest(study.folder / "figures")
    for entry in entries:
        with atomic_write(target / entry["figure"]) as file:
            file.write_bytes((study.folder / "figures" / entry["figure"]).read_bytes())
        entry["notebook_hash"] = notebook_hash(entry["notebook"])
        trained = [read_json(study.folder / "runs" / run / "environment.json")["code"] for run in entry["runs"]]
        entry["training"] = sorted(set(trained))
    for old in set(target.glob("*.png")) - {target / entry["figure"] for entry in entries}:
        old.unlink()
    write_json(
        target / MANIFEST,
        {"study": study_file, "configuration": study_hash(study), "figures": entries},
    )
    return [target / entry["figure"] for entry in entries]


def stale(folder: Path) -> list[str]:
    """One sentence for each way in which a folder of published figures no longer matches the project."""
    manifest = read_json(folder / MANIFEST)
    sentences = []
    if manifest["configuration"] != study_hash(load_study(manifest["study"])):
        sentences.append(f"{manifest['study']} has changed since the figures were made.")
    for entry in manifest["figures"]:
        file = folder / entry["figure"]
        if not file.is_file() or file_hash(file) != entry["sha256"]:
            sentences.append(f"{entry['figure']} is not the picture that the study wrote.")
        trained = all(code == code_hash(*TRAINING_CODE) for code in entry["training"])
        if entry["code"] != code_hash(*entry["modules"]) or not trained:
            sentences.append(f"The code that draws {entry['figure']}, or what it rests on, has changed since.")
        if entry["notebook_hash"] != notebook_hash(entry["notebook"]):
            sentences.append(f"The notebook {entry['notebook']} has changed since it drew {entry['figure']}.")
    listed = {entry["figure"] for entry in manifest["figures"]}
    sentences += [f"{file.name} is in no manifest." for file in folder.glob("*.png") if file.name not in listed]
    return sentences


def study_hash(study: Study) -> str:
    return hash_of(study.model_dump(mode="json"))


def notebook_hash(name: str) -> str:
    """Of what a notebook's code does."""
    cells = read_json(project_root() / "notebooks" / f"{name}.ipynb")["cells"]
    return source_hash("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))


if __name__ == "__main__":
    try:
        asked = load_study(sys.argv[1], sys.argv[2:])
    except ParameterError as error:
        sys.exit(str(error))
    for picture in publish(asked, sys.argv[1]):
        print(picture.relative_to(project_root()))
