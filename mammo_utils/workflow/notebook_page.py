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

from mammo_utils.workflow.pages import FOLDER, tidy_tables, to_html
from mammo_utils.workflow.pictures import Picture, Pictures, figure_html

WIDGET = "application/vnd.jupyter.widget-view+json"
PLAIN = re.compile(r'<span class="(?:n|p|o|w)">([^<]*)</span>')  # names and signs of code, half of a page's bytes
NO_WIDGET = "(a widget: open the notebook in JupyterLab to use it)"


def title_of(notebook: Path) -> str:
    """The first heading of a notebook, and the run if it has trained one."""
    cells = nbformat.read(notebook, as_version=4).cells
    found = re.search(r"(?m)^# +(.+)$", cells[0].source if cells else "")
    name, _, run = notebook.stem.partition("-")
    return (found[1].strip() if found else name) + (f": {run}" if run else "")


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
    heading = ""
    for cell in node.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"(?m)^#+ +(.+)$", cell.source) or [heading])[-1]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if WIDGET in data:  # it needs a kernel; a static figure stands beside it
                output["data"] = {"text/markdown": NO_WIDGET}
            elif "image/png" in data:
                png = base64.b64decode(data["image/png"])
                output["metadata"] = {"figure": write(*pictures.of_notebook(png, name, cell.source, heading))}


def _section(headings: Iterable[Tag]) -> str:
    """Name of the section of a table, the nearest heading before it."""
    return next((heading.get_text().rstrip("¶ ") for heading in headings), "")
