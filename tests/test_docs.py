"""Every file, function, test and notebook section that `docs/faithfulness.md` names exists."""

import ast
import re

import nbformat
import pytest

from tests.conftest import CHECKOUT

PAGE = (CHECKOUT / "docs" / "faithfulness.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| the paper")]


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def named(column):
    return sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", cells(row)[column])})


def definitions(path):
    """Names that a module defines: functions, classes, constants, and the members of classes as Class.member."""
    found = set()

    def collect(body, prefix=""):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def test_each_row_is_the_papers_statement_code_test_notebook_and_deviation():
    assert len(ROWS) > 50 and all(len(cells(row)) == 5 and cells(row)[0].endswith(".") for row in ROWS)


@pytest.mark.parametrize("folder, column", [("mammo_utils", 1), ("tests", 2)])
def test_code_and_tests_exist(folder, column):
    for name in named(column):
        file, _, function = name.partition("::")
        path = CHECKOUT / folder / file
        assert path.is_file(), name
        assert not function or function in definitions(path), name
        assert function.startswith("test_") or folder != "tests" or not function, name


def test_the_sections_of_notebooks_exist():
    for name in named(3):
        notebook, _, heading = name.partition("#")
        book = nbformat.read(CHECKOUT / "notebooks" / f"{notebook}.ipynb", as_version=4)
        text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        assert heading in re.findall(r"(?m)^#+ (.+)$", text), name


def test_each_section_of_the_papers_method_has_its_table():
    sections = re.findall(r"(?m)^#+ (§\S+)", PAGE)
    assert sections == "§2 §2.1.1 §2.1.2 §2.1.3 §2.2 §3 §3.1 §4 §4.1 §4.2 §4.3 §4.4".split()


@pytest.mark.parametrize("path", sorted(CHECKOUT.glob("notebooks/0*.ipynb")), ids=lambda path: path.stem)
def test_a_chapter_lists_its_sections_and_ends_with_its_limits_and_questions(path):
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    sections = re.findall(r"(?m)^## (.+)$", "\n".join(texts))
    contents = re.search(r"\*\*Contents\*\*: (.+)", texts[0])[1]
    assert contents == " · ".join(f"[{name}](#{name.replace(' ', '-')})" for name in sections)
    assert texts[-1].startswith("## What this shows, and what it does not") and "**Questions**" in texts[-1]
