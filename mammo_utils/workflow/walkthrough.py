"""The executed notebooks of a study as Markdown in `docs/demo/`, to be read on a code host or in an editor.

It is written by `python -m mammo_utils.workflow.publish`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
from bs4 import BeautifulSoup
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

from mammo_utils.evaluation.runs import read_runs, run_title
from mammo_utils.evaluation.tables import results_table
from mammo_utils.io import atomic_write, project_root, read_json, write_json, write_text
from mammo_utils.plots.save import MANIFEST
from mammo_utils.provenance import hash_of, source_hash
from mammo_utils.study import Study
from mammo_utils.workflow.index_page import TELLING, choose_figures, index_facts
from mammo_utils.workflow.notebook_page import place_pictures, title_of
from mammo_utils.workflow.pages import FOLDER, TEMPLATES, Link, table_markdown, tidy_tables
from mammo_utils.workflow.pictures import PICTURES, Picture, Pictures

RUN = "04_train-hybrid_shared-multi-1v5-seed0"  # the one training that is shown
CONTENTS = [Link("README.md", "Contents"), Link("../glossary.md", "Glossary")]
MARK = "**Synthetic cohort.** A program drew its images and labels, so no number here is evidence about patients."
REAL = " Two real exams (CBIS-DDSM) are shown beside it and named where they appear."
SECTION = re.compile(r"\]\(#((?:[^()]|\([^()]*\))+)\)")
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
MATH = re.compile(r"\n*\$\$(.+?)\$\$\n*|\$([^$]+)\$", re.DOTALL)
# GitHub removes the backslash before a sign in an equation, so that these commands are written as words.
SIGNS = dict(zip(",;!{}|\\", "thinspace thickspace negthinspace lbrace rbrace Vert cr".split(), strict=True))


class PublishedPictures(Pictures):
    """Pictures of the walkthrough: those of `figures/`, and PNG files in the folder `pictures` for all others."""

    def __init__(self, study_folder: Path, pages: Path):
        """`study_folder` has the study's figures, `pages` is the folder of the walkthrough."""
        super().__init__(study_folder)
        self.pages = pages

    def _keep(self, png: bytes, name: str, alt: str) -> Picture:
        published = project_root() / "figures" / f"{name}.png"
        address = f"../../figures/{name}.png"
        if not (published.is_file() and published.read_bytes() == png):
            address = f"{PICTURES}/{name}-{hashlib.sha256(png).hexdigest()[:8]}.png"
            (self.pages / PICTURES).mkdir(parents=True, exist_ok=True)
            with atomic_write(self.pages / address) as file:
                file.write_bytes(png)
        return Picture(address, 0, 0, alt)


def write_walkthrough(study: Study) -> list[Path]:
    """Write `docs/demo/` from the executed notebooks of a study, and return its pages.

    The text is that of the project's notebooks, which may have been edited since; the code must be the same
    (`changed_notebooks`).
    """
    folder = project_root() / "docs" / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    pictures, notebooks = PublishedPictures(study.folder, folder), executed(study)
    facts = index_facts(study, results_table(read_runs(study), study))
    mark = f"Study “{study.name}”." if not facts["synthetic"] else MARK + (REAL if study.real_exams else "")
    runs = {name: path.stem.partition("-")[2] for name, path in notebooks.items()}
    titles = {name: title_of(_source(name)) + (f": {run_title(run)}" if run else "") for name, run in runs.items()}
    chapters = [Link(f"{name}.md", title) for name, title in titles.items()]
    for place, (name, path) in enumerate(notebooks.items()):
        steps = {"← ": chapters[:place][-1:], "": CONTENTS, "→ ": chapters[place + 1 :][:1]}
        line = " · ".join(f"[{arrow}{link.title}]({link.address})" for arrow, links in steps.items() for link in links)
        resources = {"chapters": list(notebooks), "mark": mark, "steps": line}
        write_text(folder / f"{name}.md", chapter_markdown(path, pictures, resources))
    telling, _ = choose_figures(pictures.figures)
    facts |= {"mark": mark, "chapters": chapters, "results": map(tables_markdown, facts["results"])}
    facts["telling"] = [figure_markdown(pictures.figure(name), TELLING[pattern]) for name, pattern in telling.items()]
    write_text(folder / "README.md", TEMPLATES.get_template("walkthrough.md.j2").render(facts))
    write_json(folder / MANIFEST, {"study": study.name, "notebooks": {name: _text_hash(name) for name in notebooks}})
    return sorted(folder.glob("*.md"))


def executed(study: Study) -> dict[str, Path]:
    """Name -> file of each executed notebook that the walkthrough shows; of the trainings, one."""
    paths = sorted((study.folder / "notebooks").glob("0[1-9]_*.ipynb"))
    return {path.stem.partition("-")[0]: path for path in paths if "-" not in path.stem or path.stem == RUN}


def changed_notebooks(study: Study) -> list[str]:
    """One sentence for each executed notebook whose code is no longer that of the project's notebook."""
    sentences = []
    for name, path in executed(study).items():
        now, ran = ([source_hash(cell.source) for cell in _code(_read(file))] for file in (_source(name), path))
        sentences += [f"The code of the notebook {name} has changed since it ran."] if now != ran else []
    return sentences


def stale_chapters(folder: Path) -> list[str]:
    """One sentence for each notebook, text included, that has changed since its page in `folder` was written."""
    written = read_json(folder / MANIFEST)["notebooks"] if (folder / MANIFEST).is_file() else {}
    return [
        f"The notebook {name} has changed since docs/demo/{name}.md was written."
        for name, known in written.items()
        if known != _text_hash(name)
    ]


def chapter_markdown(path: Path, pictures: Pictures, resources: dict[str, Any]) -> str:
    """Convert an executed notebook to Markdown.

    Args:
        path: The notebook.
        pictures: The pictures of the walkthrough.
        resources: The names of all `chapters`, the line with links to other pages, `steps`, and the line about the
            data, `mark`.
    """
    name = path.stem.partition("-")[0]
    node = _read(_source(name))
    for cell, ran in zip(_code(node), _code(_read(path)), strict=True):
        cell.outputs = ran.outputs
    place_pictures(node, name, pictures, figure_markdown)
    exporter = MarkdownExporter(raw_template=(FOLDER / "chapter.md.j2").read_text("utf-8"))
    exporter.environment.trim_blocks = exporter.environment.lstrip_blocks = True
    exporter.register_filter("portable", partial(portable, chapters=resources["chapters"]))
    exporter.register_filter("tables", tables_markdown)
    return exporter.from_notebook_node(node, resources)[0].strip() + "\n"


def portable(markdown: str, chapters: Collection[str]) -> str:
    """Markdown of a notebook as code hosts read it: equations, links to its sections and to the other `chapters`."""
    parts = CODE.split(markdown)
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = f"[{part}]({part[1:-1]}.md)" if part[1:-1] in chapters else part
        else:
            part = SECTION.sub(lambda link: f"](#{_anchor(unquote(link[1]))})", part)
            parts[place] = MATH.sub(_equation, part)
    return "".join(parts)


def _equation(match: re.Match[str]) -> str:
    body = re.sub(r"\\([,;!{}|\\])", lambda sign: rf"\{SIGNS[sign[1]]} ", " ".join((match[1] or match[2]).split()))
    return f"\n\n$$\n{body}\n$$\n\n" if match[1] else f"${body}$"


def _anchor(heading: str) -> str:
    """The anchor of a heading as code hosts name it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def tables_markdown(html: str) -> str:
    """The tables in a piece of HTML as Markdown; a folded one stays folded."""
    soup = BeautifulSoup(html, "html.parser")
    if not soup.find("caption"):
        tidy_tables(soup, lambda _: "")
    parts = []
    for table in soup("table"):
        fold = table.find_parent("details")
        text = table_markdown(table)
        parts.append(f"<details>{fold.summary}\n\n{text}\n\n</details>" if fold else text)
    return "\n\n".join(parts)


def figure_markdown(picture: Picture, caption: str = "") -> str:
    """A picture with its caption as Markdown."""
    alt = re.sub(r"[\[\]\s]+", " ", picture.alt)
    return f"![{alt}]({picture.address})" + (f"\n\n*{caption}*" if caption else "")


def _source(name: str) -> Path:
    """The project's notebook."""
    return project_root() / "notebooks" / f"{name}.ipynb"


def _read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def _code(node: NotebookNode) -> list[NotebookNode]:
    """The cells with the notebook's own code."""
    own = [cell for cell in node.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    return [cell for cell in own if cell.cell_type == "code"]


def _text_hash(name: str) -> str:
    return hash_of([cell.source for cell in _read(_source(name)).cells])
