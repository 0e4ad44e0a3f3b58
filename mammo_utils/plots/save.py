"""Save a figure together with a manifest entry that states where it comes from."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mammo_utils.io import atomic_write, folder_lock, read_json, write_json
from mammo_utils.plots.style import DPI, STYLE
from mammo_utils.provenance import code_hash, commit, file_hash, function_hash, hash_of, notebook_hash

MANIFEST = "manifest.json"
MARK = "synthetic cohort"


def save_figure(
    figure: Figure,
    name: str,
    folder: Path,
    *,
    notebook: str,
    runs: Sequence[str] = (),
    data: str = "",
    caption: str = "",
    synthetic: bool,
    vector: bool = False,
) -> Path:
    """Write `folder/<name>.png` atomically, if asked `<name>.pdf` beside it, and its entry in `folder/manifest.json`.

    The same figure gives the same bytes: the resolution is fixed, and the file holds neither date nor version.

    Args:
        figure: The figure, drawn by a function decorated with `style.styled`.
        name: File name without suffix: letters, digits, - and _.
        folder: Folder of the figures.
        notebook: Name of the notebook that drew it, such as "05_results".
        runs: Ids of the runs that it shows.
        data: Name and hash of the data that it shows.
        caption: One line for the report.
        synthetic: Whether it shows the synthetic cohort; if so, the figure is marked.
        vector: Whether to write a PDF, too.

    Raises:
        ValueError: The name has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"The figure name {name!r} may contain only letters, digits, - and _; choose another.")
    if synthetic:
        mark_synthetic(figure)
    path = Path(folder) / f"{name}.png"
    formats = {".png": {"Software": None}} | ({".pdf": {"CreationDate": None, "Producer": None}} if vector else {})
    for suffix, metadata in formats.items():
        buffer = io.BytesIO()
        with plt.rc_context(STYLE):
            figure.savefig(buffer, format=suffix[1:], dpi=DPI, bbox_inches="tight", metadata=metadata)
        with atomic_write(path.with_suffix(suffix)) as temporary:
            temporary.write_bytes(buffer.getvalue())
    drawn_by = getattr(figure, "drawn_by", "")
    entry = {"figure": path.name, "sha256": file_hash(path), "notebook": notebook, "runs": list(runs), "data": data}
    entry |= {"synthetic": synthetic, "commit": commit(), "notebook_hash": _hash_notebook(notebook)}
    entry |= {"drawn_by": drawn_by, "code": drawing_code(drawn_by), "caption": caption}
    with folder_lock(path.parent):  # two notebooks of a study may save at once
        entries = [old for old in read_manifest(path.parent) if old["figure"] != path.name]
        write_json(path.parent / MANIFEST, sorted([*entries, entry], key=lambda e: e["figure"]))
    return path


def _hash_notebook(name: str) -> str:
    for _ in range(50):
        try:
            return notebook_hash(name)
        except ValueError:  # JupyterLab, which saves an open notebook by itself, empties the file for a moment
            time.sleep(0.1)
    return notebook_hash(name)


def drawing_code(drawn_by: str) -> str:
    """Hash the function `module:name` that draws a figure and the style of all figures; "" if it no longer exists."""
    module, _, name = drawn_by.partition(":")
    try:
        return hash_of([function_hash(getattr(import_module(module), name)), code_hash("mammo_utils.plots.style")])
    except (ImportError, AttributeError, ValueError):
        return ""


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Read the entries of a folder's figures, sorted by file name; none if nothing has been saved yet."""
    path = Path(folder) / MANIFEST
    return read_json(path) if path.is_file() else []


def mark_synthetic(figure: Figure) -> None:
    """Write "synthetic cohort" along the figure's right edge, once; a legend may take the whole width below."""
    if all(text.get_gid() != MARK for text in figure.texts):
        place = {"x": 1.005, "y": 0.5, "ha": "left", "va": "center", "rotation": 270}
        figure.text(s=MARK, **place, fontsize=7, style="italic", color="#555555", gid=MARK)
