"""Copy a study's figures into the project's `figures/`, with what each was made from.

python -m mammo_utils.workflow.publish config/demo.yaml [settings ...]
python -m mammo_utils.workflow.publish --check        lists published figures that are out of date or altered
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mammo_utils.config import ParameterError
from mammo_utils.io import atomic_write, display_path, project_root, read_json, write_json
from mammo_utils.plots.save import MANIFEST, drawing_code, read_manifest
from mammo_utils.provenance import file_hash, hash_of, notebook_hash, training_code
from mammo_utils.study import Study, load_study


class StaleFigures(ValueError):
    """The study's figures do not match the code as it is; the message names the first one."""


def publish(study: Study, study_file: str) -> list[Path]:
    """Replace ``figures/*.png`` and the manifest by this study's figures, and return their paths.

    Raises:
        StaleFigures: The function or notebook that draws a figure, or the training code of its runs, has changed.
    """
    target = project_root() / "figures"
    entries = read_manifest(study.folder / "figures")
    for entry in entries:
        environments = [read_json(study.folder / "runs" / run / "environment.json") for run in entry["runs"]]
        entry["training"] = {e["scan"]: e["code"] for e in environments}  # the backend of the scan -> code
        if sentences := list(_changes(entry)):
            raise StaleFigures(f"{sentences[0]} Run the study again, then publish.")
    for entry in entries:
        with atomic_write(target / entry["figure"]) as file:
            file.write_bytes((study.folder / "figures" / entry["figure"]).read_bytes())
    for old in set(target.glob("*.png")) - {target / entry["figure"] for entry in entries}:
        old.unlink()
    values = {"study": study_file, "configuration": study_hash(study), "figures": entries}
    write_json(target / MANIFEST, values)
    return [target / entry["figure"] for entry in entries]


def stale_figures(folder: Path) -> list[str]:
    """One sentence for each way in which a folder of published figures no longer matches the project."""
    manifest = read_json(folder / MANIFEST)
    sentences = []
    if manifest["configuration"] != study_hash(load_study(manifest["study"])):
        sentences.append(f"{manifest['study']} has changed since the figures were made.")
    try:
        return sentences + [sentence for entry in manifest["figures"] for sentence in _changes(entry)]
    except (KeyError, AttributeError):
        return [
            *sentences,
            f"{display_path(folder / MANIFEST)} is of an earlier version; run the study and publish it.",
        ]


def _changes(entry: dict[str, Any]) -> Iterator[str]:
    """What a figure depends on and has changed: the function that draws it, its notebook, the training of its runs."""
    figure, notebook = entry["figure"], entry["notebook"]
    if entry["code"] != drawing_code(entry["drawn_by"]):
        yield f"The function that draws {figure}, or the style of all figures, has changed."
    if any(code != training_code(backend) for backend, code in entry["training"].items()):
        yield f"The training code of the runs in {figure} has changed."
    if entry["notebook_hash"] != notebook_hash(notebook):
        yield f"The notebook {notebook} has changed since it drew {figure}."


def altered_figures(folder: Path) -> list[str]:
    """One sentence for each published figure that is missing, altered, or not in the manifest."""
    entries = {entry["figure"]: entry["sha256"] for entry in read_json(folder / MANIFEST)["figures"]}
    files = {file.name: file_hash(file) for file in folder.glob("*.png")}
    sentences = [f"{n} is not the file that the study wrote." for n, sha in entries.items() if files.get(n) != sha]
    return sentences + [f"{name} is not in the manifest." for name in files if name not in entries]


def study_hash(study: Study) -> str:
    """Hash of a study's settings."""
    return hash_of(study.model_dump(mode="json"))


def main(arguments: list[str]) -> None:
    """Run the command line."""
    if arguments == ["--check"]:
        folder = project_root() / "figures"
        sentences = [*stale_figures(folder), *altered_figures(folder)]
        print("\n".join(f"warning: {s}" for s in sentences) or "All published figures match the project.")
        return
    try:
        for picture in publish(load_study(arguments[0], arguments[1:]), arguments[0]):
            print(picture.relative_to(project_root()))
    except (ParameterError, StaleFigures) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
