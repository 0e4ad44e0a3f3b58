"""The walkthrough in `docs/demo/` has what the executed notebooks have, in Markdown that every code host reads."""

import copy
import re
import shutil

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell

from mammo_utils.evaluation.readable import Folded
from mammo_utils.workflow.walkthrough import (
    RUN,
    changed_notebooks,
    portable,
    stale_chapters,
    tables_markdown,
    write_walkthrough,
)
from tests.conftest import CHECKOUT
from tests.links import wrong_markdown_links
from tests.workflow.test_pages import TABLE, write_notebook

CHAPTERS = ["01_data_exploration", "04_train", "05_results"]


@pytest.fixture
def demo(reported_study, tmp_path):
    """A study with four executed notebooks, and the project's notebooks that they came from; two figures published."""
    for name in (CHAPTERS[0], RUN, CHAPTERS[2]):
        path = write_notebook(reported_study, name)
        ran = nbformat.read(path, as_version=4)
        ran.cells[-1].source += f"\n# of {name}, ``` and <here>"
        source = copy.deepcopy(ran)
        source.cells[-1].outputs = []
        nbformat.write(source, tmp_path / "notebooks" / f"{name.partition('-')[0]}.ipynb")
        ran.cells.insert(1, new_code_cell("system = 'other'", metadata={"tags": ["injected-parameters"]}))
        nbformat.write(ran, path)
    shutil.copy(path, path.with_name("04_train-resnet18-multi-1v5-seed0.ipynb"))  # the other runs are not shown
    shutil.copytree(reported_study.folder / "figures", tmp_path / "figures")
    (tmp_path / "figures" / "exam.png").write_bytes(b"another study's")
    (tmp_path / "README.md").touch()
    (tmp_path / "docs").mkdir(exist_ok=True)
    (tmp_path / "docs" / "glossary.md").touch()
    return reported_study


@pytest.fixture
def pages(demo, tmp_path):
    """Name -> text of each page of the walkthrough."""
    assert changed_notebooks(demo) == []
    return {path.name: path.read_text("utf-8") for path in write_walkthrough(demo)}


def test_every_link_leads_somewhere_and_pictures_are_kept_once(pages, tmp_path):
    folder = tmp_path / "docs" / "demo"
    assert list(pages) == [*(f"{name}.md" for name in CHAPTERS), "README.md"]
    assert [fault for name in pages for fault in wrong_markdown_links(folder / name)] == []
    text = "".join(pages.values())
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert all(alt.strip() for alt, _ in pictures) and "*Level 9.*" in text
    addresses = {address for _, address in pictures}
    assert "../../figures/roc-05_results-diagnosis.png" in addresses and "../../figures/exam.png" not in addresses
    assert {a for a in addresses if not a.startswith("..")} == {f"pictures/{p.name}" for p in folder.glob("*/*")}
    assert not re.search(r"data:image|widget-view|pypi", text) and str(tmp_path) not in text


def test_pages_lead_to_their_neighbours_and_state_that_the_cohort_is_synthetic(pages):
    line = "[← 01 · Data exploration: from files to exams](01_data_exploration.md) · [Contents](README.md) · "
    line += "[Glossary](../glossary.md) · [→ 05"
    assert pages["04_train.md"].startswith(line) and pages["04_train.md"].count(line) == 2
    assert all("> **Synthetic cohort.**" in text for text in pages.values())
    assert "Hybrid (Shared), both tasks, BI-RADS 1 vs 5, seed 0](04_train.md)" in pages["README.md"], "the run shown"
    assert re.search(r"\| Hybrid[^|]*Shared[^|]*\| both tasks \|", pages["README.md"])


def test_a_chapter_has_its_notebooks_outputs_equations_and_folded_code(pages):
    text = pages["05_results.md"]
    outside = re.sub(r"(?s)<details>.*?</details>", "", text)
    assert text.count("<details><summary>Code</summary>\n\n````python\ndraw_roc(1)") == 1
    assert "draw_roc" not in outside and "injected" not in text and "other" not in text.split("draw_roc")[1][:100]
    assert "<summary>20 lines, the last: epoch 20 of 20</summary>\n\n```text\nepoch 1 of 20" in text
    assert "open the notebook in JupyterLab" in outside and "a <b> line" in outside
    assert "\n\n$$\n\\mathcal L_{t} = \\hat y \\tag{11}\n$$\n\n" in text
    assert "A rate $\\alpha < \\tfrac12$, not `$x$`." in text
    assert "**by system**\n\n| system | auc | note |\n| --- | ---: | --- |\n| \\<b> | 0.50 | ab |" in text
    assert "[`06_attention`](06_attention.md)" not in text, "no link to a chapter that is not there"


def test_the_same_study_gives_the_same_bytes_and_new_text_needs_no_new_run(pages, demo, tmp_path):
    files = {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*.*")}
    write_walkthrough(demo)
    assert files == {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*.*")}
    folder, path = tmp_path / "docs" / "demo", tmp_path / "notebooks" / "05_results.ipynb"
    assert stale_chapters(folder) == [] and stale_chapters(tmp_path) == []
    path.write_text(path.read_text().replace("not `$x$`", "now `$x$`"))
    assert stale_chapters(folder) == ["The notebook 05_results has changed since docs/demo/05_results.md was written."]
    assert changed_notebooks(demo) == []
    write_walkthrough(demo)
    assert stale_chapters(folder) == [] and "now `$x$`" in (folder / "05_results.md").read_text()
    path.write_text(path.read_text().replace("draw_roc(1)", "draw_roc(2)"))
    assert changed_notebooks(demo) == ["The code of the notebook 05_results has changed since it ran."]


def test_every_equation_of_the_notebooks_survives_a_code_host():
    """GitHub removes a backslash before a sign, and reads `$$` on lines of their own."""
    for path in sorted((CHECKOUT / "notebooks").glob("0*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown" and "$" in cell.source:
                text = portable(cell.source, ())
                found = re.findall(r"(?m)^\$\$\n(.+)\n\$\$$", text)
                assert len(found) == cell.source.count("$$") / 2, path.name
                inline = re.findall(r"\$([^$]+)\$", re.sub(r"`[^`]*`", "", text.replace("$$", "")))
                assert not [tex for tex in (*found, *inline) if re.search(r"\\[^A-Za-z]", tex)], path.name


def test_headings_in_two_rows_become_one_and_signs_stay_as_they_are():
    table = TABLE.assign(note=["a|b", "*"])
    assert tables_markdown(table.to_html()).endswith("| \\<b> | 0.50 | a\\|b |\n| y | 0.25 | \\* |")
    html = "<table><thead><tr><th></th><th colspan=2>A</th></tr><tr><th></th><th>x</th><th>y</th></tr></thead>"
    html += "<tbody><tr><th>r</th><td>0.5 [0.4, 0.6]</td><td><b>1</b></td></tr></tbody></table>"
    nbsp = "\N{NO-BREAK SPACE}"
    assert tables_markdown(html) == (
        f"|  | A, x | A, y |\n| --- | ---: | ---: |\n| r | 0.5{nbsp}[0.4,{nbsp}0.6] | **1** |"
    )


def test_the_published_walkthrough_is_small():
    assert sum(path.stat().st_size for path in (CHECKOUT / "docs" / "demo").rglob("*.*")) < 4e6


def test_a_folded_table_stays_folded():
    shown, every = (pd.DataFrame({"auc": range(n)}) for n in (1, 3))
    text = tables_markdown(Folded(shown, every, "All 3 <rows>")._repr_html_())
    before, fold = text.split("<details><summary>All 3 &lt;rows&gt;</summary>\n\n|")
    assert before.count("\n| ") == 2 and fold.count("\n| ") == 4 and fold.endswith("|\n\n</details>")
