"""A figure's file, and the entry that says where it comes from."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mammo_utils.io import atomic_write, folder_lock, read_json, write_json
from mammo_utils.plots.style import DPI, STYLE
from mammo_utils.provenance import commit, file_hash, function_hash

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
) -> Path:
    """Write ``folder/<name>.png``, whole or not at all, and its entry in ``folder/manifest.json``.

    The same figure gives the same bytes (fixed resolution, no date, no version in the file). A figure made
    from the synthetic cohort says so on its face, here and where the notebook shows it.

    name: letters, digits, - and _; notebook: the one that drew it, "05_results"; runs: the ids of the runs
    that it shows; data: name and hash of the data that it rests on. Raises ValueError for another name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"The figure name {name!r} is not made of letters, digits, - and _; choose another.")
    if synthetic:
        mark_synthetic(figure)
    path = Path(folder) / f"{name}.png"
    with plt.rc_context(STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    entry = {
        "figure": path.name,
        "sha256": file_hash(path),
        "notebook": notebook,
        "runs": list(runs),
        "data": data,
        "synthetic": synthetic,
        "commit": commit(),
        "drawn_by": getattr(figure, "drawn_by", ""),
        "code": drawing_code(getattr(figure, "drawn_by", "")),
        "caption": caption,
    }
    with folder_lock(path.parent):  # two notebooks of a study may save at once
        entries = [old for old in read_manifest(path.parent) if old["figure"] != path.name]
        write_json(path.parent / MANIFEST, sorted([*entries, entry], key=lambda e: e["figure"]))
    return path


def drawing_code(drawn_by: str) -> str:
    """Hash of the function that draws a figure, ``module:name``; "" if there is none of that name any more."""
    module, _, name = drawn_by.partition(":")
    try:
        return function_hash(getattr(import_module(module), name))
    except (ImportError, AttributeError, ValueError):
        return ""


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder's figures, sorted by file name; none where nothing was saved yet."""
    path = Path(folder) / MANIFEST
    return read_json(path) if path.is_file() else []


def mark_synthetic(figure: Figure) -> None:
    """Write "synthetic cohort" under the figure's lower right corner, once."""
    if all(text.get_gid() != MARK for text in figure.texts):
        figure.text(0.995, -0.01, MARK, ha="right", va="top", fontsize=7, style="italic", color="#555555", gid=MARK)
