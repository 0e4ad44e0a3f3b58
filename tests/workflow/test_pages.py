"""The pages of a study need no network, link only to what exists, and can be read."""

import base64
import io
import re
from importlib import import_module

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from mammo_utils.io import write_json
from mammo_utils.plots.save import save_figure
from mammo_utils.workflow.index_page import _notes, choose_figures, results_tables, state_headlines
from mammo_utils.workflow.notebook_page import _drawn, _imported
from mammo_utils.workflow.pages import style, table_html, tidy_tables, to_html
from mammo_utils.workflow.pictures import Pictures, what_is_drawn
from mammo_utils.workflow.report import write_report
from tests.conftest import CHECKOUT
from tests.links import wrong_links, wrong_markdown_links

WIDGET = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Box()"}
LOG = "".join(f"epoch {n} of 20\n" for n in range(1, 21))
SAVES = 'draw_roc(1)\nsave(figure, f"roc-{name}-diagnosis")\nsave(figure, "exam")  # <here>'
TABLE = pd.DataFrame({"auc": [0.5, 0.25], "empty": [None, None], "note": ["ab", "c"]}, index=["<b>", "y"])
TABLE = TABLE.rename_axis("system").rename_axis(columns="by system")


def figure(level):
    drawn = Figure(figsize=(4, 3))
    axes = drawn.subplots()
    axes.bar(range(3), [level, 2, 3])
    axes.set_title(f"figure {level}")
    return drawn


def png(drawn, dpi=100):
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def write_notebook(study, name):
    """A notebook with its own prose, each kind of output, and the figures that it saved."""
    pictures = [png(Figure(figsize=(2, 5)))]
    for level, figure_name in ((1, f"roc-{name}-diagnosis"), (9, "exam")):
        facts = {"notebook": name.partition("-")[0], "caption": f"Level {level}.", "synthetic": True}
        save_figure(drawn := figure(level), figure_name, study.folder / "figures", **facts)
        pictures.append(png(drawn))
    shown = [new_output("display_data", {"image/png": base64.b64encode(p).decode()}) for p in pictures]
    outputs = [
        new_output("execute_result", {"text/html": TABLE.to_html(), "text/plain": "t"}, execution_count=1),
        new_output("stream", name="stdout", text=LOG),
        new_output("display_data", WIDGET),
        new_output("error", ename="E", evalue="x", traceback=["a <b> line"]),
    ]
    source = nbformat.read(CHECKOUT / "notebooks" / f"{name.partition('-')[0]}.ipynb", as_version=4)
    cells = [cell for cell in source.cells if cell.cell_type == "markdown"]
    cells += [
        new_markdown_cell("A rate $\\alpha < \\tfrac12$, not `$x$`."),
        new_markdown_cell("## Nothing & more\n\n$$\\mathcal L_{t} = \\hat y \\tag{11}$$"),
        new_code_cell("from mammo_utils.plots.results import draw_roc"),
        new_code_cell(SAVES, outputs=[*shown, *outputs]),
    ]
    path = study.folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def pages(reported_study):
    """The pages of a small study with three notebooks and predicted exams."""
    for name in ("01_data_exploration", "04_train-resnet18-multi-1v5-seed0", "05_results"):
        write_notebook(reported_study, name)
    write_json(reported_study.folder / "predicted" / "predictions.json", {})
    (reported_study.folder / "predicted" / "index.html").write_text("<h1>2 exams</h1>")
    (reported_study.folder / "predicted" / "model.zip").write_bytes(b"0" * 100)
    write_report(reported_study)
    return reported_study.folder / "html"


def test_the_folder_is_complete_and_every_link_leads_somewhere(pages):
    assert wrong_links(pages) == []
    assert not re.search(r"url\(|@import", style()) and "mathjax" not in "".join(
        p.read_text() for p in pages.glob("*.html")
    )
    assert not (pages / "predicted" / "model.zip").exists() and (pages / "predicted" / "predictions.json").is_file()
    assert 'href="predicted/index.html"' in (pages / "index.html").read_text()
    for page in pages.glob("*.html"):
        text = page.read_text()
        assert '<meta name="viewport"' in text and "No description has been provided" not in text, page.name
        assert re.search(r"<title>.+ · study “small”</title>", text), page.name


def test_the_check_of_links_finds_what_is_wrong(pages):
    (pages / "bad.html").write_text(
        '<a href="none.html"></a><a href="index.html#none"></a><a href="../claim.md"></a><img src="style.css">'
        '<script src="https://x.org/a.js"></script><p id="a"></p><p id="a"></p>'
    )
    assert len(wrong_links(pages)) == 6


def test_a_notebook_page_has_its_outputs_equations_and_sections(pages):
    soup = BeautifulSoup((pages / "05_results.html").read_text(), "html.parser")
    assert soup.title.text.startswith("05 · Results") and soup.title.text.endswith(" · study “small”")
    assert [math.text for math in soup("math")][-1] == "ℒt=y^" and soup.select_one(".equation span").text == "(11)"
    assert soup.find("code", string="$x$") and "$$" not in soup.main.text
    section = soup.select(".sections a")[-1]
    assert section.text == "Nothing & more" and soup.find(id="Nothing-&-more")
    assert soup.select("details.code")[-1].text.strip().endswith("# <here>") and not soup.select_one("details[open]")
    assert soup.select_one("details.log summary").text == "20 lines, the last: epoch 20 of 20"
    assert "open the notebook in JupyterLab" in soup.main.text and "a <b> line" in soup.main.text
    assert soup.table.caption.text == "by system" and [c.text for c in soup.table.select("thead th")] == [
        "system",
        "auc",
        "note",
    ]
    assert soup.table.find("th", string="<b>"), "values stay escaped"
    captions = [caption.text for caption in soup("figcaption")]
    assert captions[1:] == ["Level 1.", "Level 9."], "of the figures that the cell saved"
    assert captions[0].startswith("One panel per system") and soup.main.img["alt"] == captions[0]


def test_pages_lead_to_the_contents_and_to_their_neighbours(pages):
    bars = {
        name: [a["href"] for a in BeautifulSoup((pages / f"{name}.html").read_text(), "html.parser").select(".bar a")]
        for name in ("index", "01_data_exploration", "04_train-resnet18-multi-1v5-seed0", "claim")
    }
    assert bars["index"] == ["01_data_exploration.html"]
    assert bars["01_data_exploration"] == ["index.html", "04_train-resnet18-multi-1v5-seed0.html"]
    assert bars["04_train-resnet18-multi-1v5-seed0"] == ["index.html", "01_data_exploration.html", "05_results.html"]
    assert bars["claim"] == ["index.html", "model_card.html"]


def test_each_picture_is_kept_once_and_what_no_page_shows_is_removed(pages, reported_study):
    kept = sorted(path.name for path in (pages / "pictures").iterdir())
    assert sum(name.startswith("exam-") for name in kept) == 1, "notebook and index page share it"
    save_figure(figure(5), "exam", reported_study.folder / "figures", notebook="05_results", synthetic=True)
    write_report(reported_study)
    now = sorted(path.name for path in (pages / "pictures").iterdir())
    assert sum(name.startswith("exam-") for name in now) == 1 and now != kept and wrong_links(pages) == []


def test_a_picture_is_recognised_in_another_resolution_but_no_other_one_is(reported_study):
    folder = reported_study.folder / "figures"
    for level in (1, 2, 9):
        save_figure(figure(level), f"level{level}", folder, notebook="05_results", synthetic=False)
    pictures = Pictures(reported_study.folder)
    saves = 'draw(1)\nsave(figure, f"level{level}", runs=runs[level], caption="A, b")'
    matches = [pictures.matching(png(figure(level)), "05_results", saves) for level in (1, 2, 9)]
    assert matches == ["level1", "level2", "level9"]
    assert pictures.matching(png(figure(1)), "06_attention", saves) == ""
    for other in ("draw(1)", 'save_figure(\n    figure,\n    "level9",\n)'):
        assert pictures.matching(png(figure(1)), "05_results", other) == "", "the cell does not save it"
    dark = figure(1)
    dark.axes[0].set_facecolor("black")
    assert pictures.matching(png(dark), "05_results", saves) == ""
    picture = pictures.figure("level1")
    with Image.open(reported_study.folder / "html" / picture.address) as kept, Image.open(folder / "level1.png") as own:
        assert list(kept.convert("L").getdata()) == list(own.convert("RGB").convert("L").getdata()), (
            "drawings lose nothing"
        )


# --- tables, equations and results ----------------------------------------------------------------------


def test_tables_align_numbers_and_leave_out_empty_columns():
    soup = BeautifulSoup(str(table_html(TABLE, "unused")), "html.parser")
    assert [cell.get("class") for cell in soup.select("tbody tr")[0]("td")] == [["number"], ["short"]]
    wide = pd.DataFrame(
        [[1, None], [2, 3]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")], names=["l", "m"])
    )
    soup = BeautifulSoup(str(table_html(wide.rename_axis("Table 2"))), "html.parser")
    assert soup.caption.text == "Table 2" and len(soup.select("thead tr")) == 2
    nested = TABLE.assign(more=["p", "p"]).set_index(["more", "note"])
    soup = BeautifulSoup(nested.to_html(), "html.parser")
    tidy_tables(soup, lambda _: "")
    assert [cell.text for cell in soup.select("thead th")] == ["more", "note", "auc"]
    assert [[cell.text for cell in row(["th", "td"])] for row in soup.select("tbody tr")] == [
        ["p", "ab", "0.50"],
        ["p", "c", "0.25"],
    ]
    assert [cell["class"] for cell in soup.select("tbody tr > th:first-child")] == [["short"], ["again", "short"]]
    assert BeautifulSoup(str(table_html(TABLE.iloc[:0])), "html.parser").caption.text == "none"


def test_an_equation_that_cannot_be_converted_is_shown_as_it_is_written():
    assert to_html("a $x_1_2 < y$ b").strip() == "<p>a <code>x_1_2 &lt; y</code> b</p>"


def test_every_equation_of_the_notebooks_is_converted():
    texts = [
        cell.source
        for path in sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "markdown"
    ]
    pages = [to_html(text) for text in texts]
    assert sum(page.count("<math") for page in pages) > 30
    for page in pages:
        assert not re.search(r"\$|\\[a-z]+\{|<code>[^<]*\\", page), page


def test_a_picture_that_is_not_saved_has_what_its_own_function_draws_as_caption():
    """Two modules have a function `draw_steps`."""
    modules = _imported("from benchmarks import load_records, plots")
    modules |= _imported(
        "from mammo_utils.plots import data as figures\nfrom mammo_utils.plots.results import draw_curves"
    )
    scans, steps, images, curves = _drawn(
        "plots.draw_scans(here)\nplots.draw_steps(here);\nfigures.draw_steps(x)\ndraw_curves(rows, title)", modules
    )
    assert scans.startswith("Time of each scan") and steps.startswith("Parts of each system's training step")
    assert images.startswith("One image in several steps") and curves.startswith("Training loss and the validation AUC")
    assert _drawn("draw_toy(3)", modules) == []


@pytest.mark.parametrize("module", "attention data decisions models results".split())
def test_what_a_figure_shows_is_described_without_names_of_code(module):
    functions = [name for name in vars(import_module(f"mammo_utils.plots.{module}")) if name.startswith("draw_")]
    for text in (what_is_drawn(f"mammo_utils.plots.{module}", name) for name in functions):
        assert text and not re.search(r"[A-Z]{4}[A-Z]*\b(?<!BI-RADS)|mammo_utils|\w_\w|\(\d*,", text), text


def test_the_best_value_is_marked_only_if_it_is_told_apart_from_all_others():
    systems = ("hybrid_shared", "resnet18", "resnet50")
    values = {"low": 0.8, "high": 0.9, "subset": "1v5", "task": "diagnosis", "metric": "auc", "task_mode": "multi"}
    values |= {"n_exams": 10, "n_breasts": 20, "n_patients": 9, "n_seeds": 1}
    rows = pd.DataFrame([{"system": s, "value": v} | values for s, v in zip(systems, (0.9, 0.8, 0.7), strict=True)])
    compared = [
        {"subset": "1v5", "task": "diagnosis", "metric": "auc", "system": s, "task_mode": "multi"}
        | {"reference": "hybrid_shared multi", "answer": "told apart: Hybrid (Shared) better"}
        for s in systems[1:]
    ]
    (table,), marked = results_tables(rows, compared)
    assert "BI-RADS 1 vs 5, Diagnosis: 20 breasts, 10 exams, 9 patients." in _notes(rows.assign(part="test"), marked)
    assert (
        marked == 1 and '<b class="best"><span class="interval">0.900 [0.800, 0.900]' in table and "ResNet-18" in table
    )
    compared[1] |= {"answer": "not told apart", "p_holm": 0.01}
    assert results_tables(rows, compared)[1] == 0, "the answer counts, not Holm's p, which is no correction of one"
    rows.loc[1, "value"] = 0.95
    compared[1]["answer"] = compared[0]["answer"]
    assert results_tables(rows, compared)[1] == 0, "the two ResNets are not compared with each other"
    assert results_tables(rows.assign(value=float("nan")), [])[1] == 0


def test_six_pictures_are_chosen_and_others_step_in_for_missing_ones():
    names = ["systems-1to5", "systems-1v5", "roc-1to5-multi-diagnosis", "exam", "training-1v5", "levels-1v5"]
    figures = {name: {"notebook": "05_results"} for name in names} | {"flow-final": {"notebook": "02_preprocessing"}}
    chosen, others = choose_figures(figures)
    assert list(chosen) == ["systems-1v5", "roc-1to5-multi-diagnosis", "exam", "training-1v5", "flow-final"]
    assert others == {"05_results": ["levels-1v5", "systems-1to5"]}


@pytest.mark.parametrize(
    "path", [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))], ids=lambda p: p.name
)
def test_the_links_of_the_documentation_lead_somewhere(path):
    assert wrong_markdown_links(path) == []


LAST = "notebooks runs settings data made-with".split()  # sections of the index page


def test_the_headlines_are_computed(small_study):
    row = {"subset": "1v5", "task": "diagnosis", "metric": "auc", "n_patients": 40}
    results = pd.DataFrame([row | {"value": 0.81}, row | {"value": 0.9}, row | {"value": 1.0, "task": "birads"}])
    rivals = [row | {"baseline": name, "value": value} for name, value in (("maximum", 0.55), ("majority class", 0.6))]
    compared = [{"p": p, "answer": answer} for p, answer in ((0.2, "not told apart"), (None, "no test"))]
    study = small_study.model_copy(update={"model": small_study.model.model_copy(update={"weights": "patches"})})
    first, second, third = state_headlines(study, results, {"shortcuts": rivals, "comparisons": compared}, {})
    assert first == (
        "BI-RADS 1 vs 5: the systems' AUC of the diagnosis is 0.81 to 0.90 (40 patients); that of statistics of whole "
        "images is at most 0.55."
    )
    assert second.startswith("0 of 1 comparisons") and second.endswith("these patients cannot rank the systems.")
    assert "recognise the structure that decides the diagnosis" in third
    apart = [{"p": 0.01, "answer": "told apart: better"}]
    found = {"findings": [{"finding": "Both are flagged."}]}
    said = state_headlines(small_study, results, {"comparisons": apart}, found)
    assert said[1:] == ["1 of 1 comparisons of two systems are told apart after correction.", "Both are flagged."]


def test_the_index_page_has_results_first_and_the_trainings_in_one_fold(pages):
    soup = BeautifulSoup((pages / "index.html").read_text(), "html.parser")
    assert [h2["id"] for h2 in soup("h2")] == [*"short results pictures figures".split(), *LAST]
    assert soup.table.caption.text == "BI-RADS 1 vs 5" and "Hybrid (Shared)" in soup.table.text
    assert "Highlighted" not in soup.main.text and not soup.select(".best")
    (fold,) = [d for d in soup("details") if "Notebook 04" in d.summary.text]
    assert [a["href"] for a in fold("a")] == ["04_train-resnet18-multi-1v5-seed0.html"]
    run = soup.find("a", string="ResNet-18, both tasks, BI-RADS 1 vs 5, seed 0")
    assert run["href"] == "04_train-resnet18-multi-1v5-seed0.html", "the list of runs leads to their pages"
    assert soup.find(id="exam").find_parent("details") is None, "a telling picture"
    assert soup.find(id="roc-04_train-resnet18-multi-1v5-seed0-diagnosis").figcaption.text.startswith(
        "The further a curve"
    )
