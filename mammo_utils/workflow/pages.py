"""What all pages of a study share: the frame with navigation and sections, equations, and readable tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from mammo_utils.io import write_text

FOLDER = Path(__file__).with_name("templates")
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
EMPTY = ("", "NaN", "nan", "None", "NaT", "<NA>")
SCRIPT = re.compile(r'<mi mathvariant="script">([A-Z])</mi>')
MARKUP = re.compile(r"([\\`*|<$~])")  # signs that Markdown would read
NUMBER = re.compile(r"[-+−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?%)?( ?[\[(][-+−\d., to]+[\])])?")


@dataclass(frozen=True)
class Link:
    """A page of the study: its address in the folder `html`, and its name."""

    address: str
    title: str


def write_page(
    path: Path,
    title: str,
    body: str,
    study: str,
    *,
    contents: Link | None = Link("index.html", "Contents"),
    previous: Link | None = None,
    next_: Link | None = None,
) -> None:
    """Write one page.

    Args:
        path: The page's file in the folder `html`.
        title: Title of the page, to which the study's name is added.
        body: Its content as HTML; the second-level headings become its list of sections.
        study: Name of the study.
        contents: Link to the index page; None on that page.
        previous: Link to the page before it.
        next_: Link to the page after it.
    """
    headings = re.findall(r'<h2[^>]*\bid="([^"]+)"[^>]*>(.*?)</h2>', body, re.DOTALL)
    sections = [(Markup(id_).unescape(), Markup(text).striptags().rstrip("¶ ")) for id_, text in headings]
    links = {"contents": contents, "previous": previous, "next": next_}
    facts = {"title": title, "study": study, "sections": sections, "code": 'class="code"' in body, **links}
    write_text(path, TEMPLATES.get_template("page.html.j2").render(body=Markup(body), **facts) + "\n")


def style() -> str:
    """The style sheet of all pages, with the colours of code in light and dark mode."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    colours = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
    own = re.sub(r"(?m)^(pre \{|.*linenos|.highlight \{).*\n?", "", colours)  # the background is the page's
    return (FOLDER / "style.css").read_text("utf-8") + own + "\n"


# --- Markdown and equations -----------------------------------------------------------------------------


class _Renderer(IPythonRenderer):
    """Markdown with its equations as MathML, which a browser draws without a script."""

    def heading(self, text: str, level: int, **attrs: dict[str, str]) -> str:
        id_ = Markup(text).striptags().replace(" ", "-")
        link = f'<a class="anchor-link" href="#{quote(id_)}" aria-label="Link to this section">¶</a>'
        return f'<h{level} id="{escape(id_)}">{text}{link}</h{level}>\n'

    def block_math(self, body: str) -> str:
        return to_mathml(body, display=True)

    def inline_math(self, body: str) -> str:
        return to_mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return to_mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)


def to_html(markdown: str) -> str:
    """Convert Markdown to HTML; equations become MathML, headings have anchors."""
    return MarkdownWithMath(_Renderer(escape=False)).render(markdown)


def to_mathml(tex: str, display: bool = False) -> str:
    r"""Convert an equation to MathML; a `\tag` becomes its number at the right.

    An equation that cannot be converted is shown as it is written.
    """
    tags = re.findall(r"\\tag\{(.*?)\}", tex)
    body = re.sub(r"\\tag\{.*?\}", "", tex).strip()
    try:
        math = SCRIPT.sub(_script, convert(body, display="block" if display else "inline"))
    except Exception:  # the library raises errors of its own, of Python and of XML
        return f"<code>{escape(tex)}</code>"
    numbers = "".join(f"<span>({escape(tag)})</span>" for tag in tags)
    return f'<div class="equation" tabindex="0">{math}{numbers}</div>' if display else math


def _script(match: re.Match[str]) -> str:
    """A script letter as a character of its own: browsers ignore the attribute."""
    letter = f"SCRIPT CAPITAL {match[1]}"
    return f"<mi>{unicodedata.lookup(letter if match[1] in 'BEFHILMR' else f'MATHEMATICAL {letter}')}</mi>"


# --- tables ---------------------------------------------------------------------------------------------


def table_html(table: pd.DataFrame, caption: str = "", escaped: bool = False) -> Markup:
    """Write a table as HTML.

    Args:
        table: The table. Its index becomes the first columns.
        caption: What it shows.
        escaped: Whether all values are HTML already.
    """
    with pd.option_context("display.max_colwidth", None):
        soup = BeautifulSoup(table.to_html(border=0, na_rep="", escape=not escaped), "html.parser")
    tidy_tables(soup, lambda _: caption)
    return Markup(str(soup))


def tidy_tables(soup: BeautifulSoup, describe: Callable[[Tag], str]) -> None:
    """Make the tables of a page readable.

    Each gets a box of its own that scrolls, a caption, one row of headings where pandas writes two, text at the left
    and numbers at the right, and repeated labels. Empty columns are left out.

    Args:
        soup: The page.
        describe: Caption of a table whose columns have no common name; "" for none.
    """
    for sheet in soup("style"):
        sheet.decompose()
    for table in soup("table"):
        table.attrs = {}
        for space in [text for text in table.find_all(string=True) if text.isspace()]:
            space.extract()
        if not table.find("thead"):
            continue
        caption = _one_heading(table) or describe(table)
        if not table.select("tbody > tr"):
            caption = f"{caption}: none".lstrip(": ")
        _repeat_labels(table.select("tbody > tr"))
        head, body = (_grid(table.select(f"{part} > tr")) for part in ("thead", "tbody"))
        for column in range(1 + max((place[1] for place in head | body), default=-1)):
            _align([c for p, c in head.items() if p[1] == column], [c for p, c in body.items() if p[1] == column])
        if caption:
            tag = soup.new_tag("caption")
            tag.string = caption
            table.insert(0, tag)
        label = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption or "table"}
        table.wrap(soup.new_tag("div", attrs=label))


def table_markdown(table: Tag) -> str:
    """Write as Markdown a table that `tidy_tables` has made readable; headings in several rows become one."""
    head, body = (_grid(table.select(f"{part} > tr")) for part in ("thead", "tbody"))
    columns = range(1 + max((column for _, column in head | body), default=-1))
    above = [[_cell(cell) for (_, column), cell in head.items() if column == c] for c in columns]
    rows = [[_cell(body[row, c]) if (row, c) in body else "" for c in columns] for row in sorted({r for r, _ in body})]
    lines = [
        [", ".join(dict.fromkeys(filter(None, names))) for names in above],
        ["---:" if "number" in (body[0, c].get("class", []) if (0, c) in body else []) else "---" for c in columns],
        *rows,
    ]
    caption = f"**{_cell(table.caption)}**\n\n" if table.caption else ""
    return caption + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Tag) -> str:
    """The text of a cell in Markdown."""
    space = "\N{NO-BREAK SPACE}" if "number" in cell.get("class", []) else " "
    text = MARKUP.sub(r"\\\1", space.join(cell.text.split()))
    return f"**{text}**" if cell.find("b") else text


def _one_heading(table: Tag) -> str:
    """Move the names of the index into the row of headings above; return what pandas writes there, a name of the table.

    That is the common name of the columns. Where they have several levels, it is the name of the index.
    """
    rows = table.select("thead > tr")
    if len(rows) < 2 or not table.select("tbody > tr"):
        return ""
    upper, lower = (row.find_all("th", recursive=False) for row in rows[-2:])
    n_index = max(len(row.find_all("th", recursive=False)) for row in table.select("tbody > tr"))
    if len(upper) != len(lower) or any(cell.text.strip() for cell in lower[n_index:]):
        return ""
    levels = len(rows) > 2
    named = lower if levels else upper
    name = " ".join(cell.text.strip() for cell in named[:n_index] if cell.text.strip())
    for above, below in zip(upper[:n_index], lower, strict=False):
        above.string = "" if levels and n_index == 1 else below.text
    for row in rows[:-2]:
        row.find("th").string = ""
    rows[-1].decompose()
    return name


def _repeat_labels(rows: list[Tag]) -> None:
    """Repeat the labels that pandas writes once for several rows, so that each row can be read on its own."""
    by_row: dict[int, dict[int, Tag]] = {}
    for (number, _), cell in sorted(_grid(rows).items(), key=lambda item: item[0]):
        by_row.setdefault(number, {})[id(cell)] = cell
    seen: set[int] = set()
    for number, row in enumerate(rows):
        copies = {known: copy(cell) for known, cell in by_row.get(number, {}).items()}
        for known, cell in copies.items():
            cell.attrs = {name: cell[name] for name in ("colspan",) if name in cell.attrs}
            cell.attrs |= {"class": ["again"]} if known in seen else {}
        seen |= set(copies)
        row.clear()
        row.extend(copies.values())


def _grid(rows: list[Tag]) -> dict[tuple[int, int], Tag]:
    """(row, column) -> the cell that covers it."""
    cells: dict[tuple[int, int], Tag] = {}
    for number, row in enumerate(rows):
        column = 0
        for cell in row.find_all(["th", "td"], recursive=False):
            while (number, column) in cells:
                column += 1
            height, width = (int(cell.get(name, 1)) for name in ("rowspan", "colspan"))
            cells |= {(number + down, column + right): cell for down in range(height) for right in range(width)}
            column += width
    return cells


def _align(head: list[Tag], body: list[Tag]) -> None:
    """Remove an empty column; else mark it as one of numbers, of short or of long text."""
    texts = [cell.text.strip() for cell in body]
    known = [text for text in texts if text not in EMPTY]
    if body and not known and all(int(cell.get("colspan", 1)) == 1 for cell in head):
        for cell in {id(cell): cell for cell in (*head, *body)}.values():
            cell.decompose()
        return
    for cell, text in zip(body, texts, strict=True):
        if text in EMPTY[1:]:
            cell.string = "–"
    kind = "number" if known and all(NUMBER.fullmatch(text) for text in known) else ""
    if not kind:
        longest = max(map(len, known), default=0)
        one_word = longest <= 40 and not any(" " in text for text in known)
        kind = "short" if longest <= 24 or one_word else "text" if longest > 40 else "words"
    if kind:
        for cell in (*body, *(cell for cell in head if int(cell.get("colspan", 1)) == 1)):
            cell["class"] = [*cell.get("class", []), kind]
