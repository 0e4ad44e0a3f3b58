"""An executed notebook as a page: no script, no network, code folded, figures with captions."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup, Tag
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from mammo_utils.evaluation.runs import run_title
from mammo_utils.workflow.pages import FOLDER, tidy_tables, to_html
from mammo_utils.workflow.pictures import Picture, Pictures, figure_html, what_is_drawn

WIDGET = "application/vnd.jupyter.widget-view+json"
PLAIN = re.compile(r'<span class="(?:n|p|o|w)">([^<]*)</span>')  # names and signs of code, half of a page's bytes
NO_WIDGET = "(a widget: open the notebook in JupyterLab to use it)"


def title_of(notebook: Path) -> str:
    """The first heading of a notebook, and the run if it has trained one."""
    cells = nbformat.read(notebook, as_version=4).cells
    found = re.search(r"(?m)^# +(.+)$", cells[0].source if cells else "")
    name, _, run = notebook.stem.partition("-")
    return (found[1].strip() if found else name) + (f": {run_title(run)}" if run else "")


def notebook_body(notebook: Path, pictures: Pictures) -> str:
    """Convert an executed notebook to the HTML of a page's body; its pictures are kept beside the page.

    Args:
        notebook: The notebook.
        pictures: The pictures of the study's pages.
    """
    node = nbformat.read(notebook, as_version=4)
    place_pictures(node, notebook.stem.partition("-")[0], pictures, figure_html)
    exporter = HTMLExporter(raw_template=(FOLDER / "notebook.html.j2").read_text("utf-8"))
    exporter.register_filter("markdown2html", to_html)
    page = PLAIN.sub(r"\1", exporter.from_notebook_node(node)[0])
    soup = BeautifulSoup(page, "html.parser")
    tidy_tables(soup, lambda table: _section(table.find_all_previous(["h1", "h2", "h3"])))
    return str(soup)


def place_pictures(node: NotebookNode, name: str, pictures: Pictures, write: Callable[[Picture, str], str]) -> None:
    """Put into the metadata of each picture in a notebook what a page shows for it, and a sentence for each widget.

    Args:
        node: The executed notebook; it is changed.
        name: Its name.
        pictures: The pictures of the pages.
        write: Writes a picture and its caption in the page's format.
    """
    node.metadata.pop("widgets", None)
    modules: dict[str, str] = {}  # name in the notebook -> the module that it is, or that has it
    for cell in node.cells:
        modules |= _imported(cell.source) if cell.cell_type == "code" else {}
        drawn = _drawn(cell.source, modules)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if WIDGET in data:  # it needs a kernel; a static figure stands beside it
                output["data"] = {"text/markdown": NO_WIDGET}
            elif "image/png" in data:
                png = base64.b64decode(data["image/png"])
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
                described = alt or (drawn.pop(0) if len(drawn) > 1 else "".join(drawn))
                output["metadata"] = {"figure": write(*pictures.of_notebook(png, name, cell.source, described))}


def _imported(source: str) -> dict[str, str]:
    """What a cell imports with `from`: its name in the notebook -> the module that it is, or that it is from."""
    found: dict[str, str] = {}
    for module, names in re.findall(r"(?m)^ *from (\S+) import ([\w, ]+)$", source):
        for name, _, alias in (part.strip().partition(" as ") for part in names.split(",")):
            found[alias or name] = module if name.startswith("draw_") else f"{module}.{name}"
    return found


def _drawn(source: str, modules: dict[str, str]) -> list[str]:
    """What the drawing functions show that a cell calls, in their order."""
    calls = re.findall(r"\b(?:(\w+)\.)?(draw_\w+)\(", source)
    found = [what_is_drawn(modules.get(alias or name, ""), name) for alias, name in calls]
    return [text for text in found if text]


def _section(headings: Iterable[Tag]) -> str:
    """Name of the section of a table, the nearest heading before it."""
    return next((heading.get_text().rstrip("¶ ") for heading in headings), "")
