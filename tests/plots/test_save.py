"""A figure's file, its entry in the manifest, and the hash of the code that draws it."""

import inspect
import shutil
import sys
import threading
from importlib import import_module

import matplotlib.pyplot as plt
import pytest

from mammo_utils import provenance
from mammo_utils.plots.save import MARK, drawing_code, read_manifest, save_figure
from mammo_utils.plots.style import styled
from mammo_utils.provenance import file_hash
from tests.conftest import CHECKOUT

MODULE = '''
from mammo_utils.plots.style import styled

WIDTH = 2

@styled
def draw_one():
    return helper(WIDTH)

def helper(width):
    """The old text."""
    return inner(width)

def inner(width):
    return width

@styled
def draw_other():
    return 1
'''


@styled
def figure():
    drawn, axis = plt.subplots(figsize=(2, 2))
    axis.plot([0, 1])
    return drawn


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The file of an importable module with two drawing functions."""
    path = tmp_path / "module_that_draws.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("module_that_draws", None)


def save(folder, name="one", synthetic=True, **more):
    path = save_figure(figure(), name, folder, notebook="05_results", synthetic=synthetic, **more)
    plt.close("all")
    return path


def test_the_entry_states_where_the_figure_comes_from(tmp_path):
    path = save(tmp_path, runs=["a", "b"], data="demo 1234", caption="A line.")
    (entry,) = read_manifest(tmp_path)
    assert entry["figure"] == "one.png" and entry["sha256"] == file_hash(path)
    assert (entry["notebook"], entry["runs"], entry["data"]) == ("05_results", ["a", "b"], "demo 1234")
    assert entry["drawn_by"] == f"{__name__}:figure" and entry["code"] == drawing_code(f"{__name__}:figure")
    assert entry["caption"] == "A line." and entry["synthetic"] is True


def test_a_notebook_that_jupyterlab_is_saving_is_read_again(tmp_path, monkeypatch):
    """Its file is empty for a moment, and was reported as damaged, with the advice to delete it."""
    notebook = tmp_path / "notebooks" / "05_results.ipynb"
    notebook.parent.mkdir()
    notebook.write_text("")
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    content = (CHECKOUT / "notebooks" / "05_results.ipynb").read_text("utf-8")
    threading.Timer(0.5, notebook.write_text, [content, "utf-8"]).start()
    save(tmp_path)
    assert read_manifest(tmp_path)[0]["notebook_hash"] == provenance.notebook_hash("05_results")


@pytest.mark.parametrize("old", ["helper(WIDTH)", "inner(width)\n\n", "return width\n", "WIDTH = 2"])
def test_a_change_of_the_drawing_function_or_of_what_it_uses_changes_the_code(module, old):
    before = drawing_code("module_that_draws:draw_one")
    assert before
    module.write_text(MODULE.replace(old, f"{old.rstrip()} + 1\n"))
    assert drawing_code("module_that_draws:draw_one") != before


def test_a_change_of_the_style_of_all_figures_changes_the_code(module, tmp_path, monkeypatch):
    before = drawing_code("module_that_draws:draw_one")
    copy = tmp_path / "mammo_utils"
    shutil.copytree(provenance.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", copy)
    for file, old, new, changes in (
        ("plots/style.py", "DPI = 150", "DPI = 151", True),
        ("vocabulary.py", '"#', '"#1', True),  # colours of the systems
        ("plots/style.py", "Colours are those of", "Colours are from", False),
        ("plots/data.py", "fontsize=8", "fontsize=9", False),
    ):
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new))
        provenance.code_hash.cache_clear()
        assert (drawing_code("module_that_draws:draw_one") != before) == changes, (file, new)
        (copy / file).write_text(text)
    provenance.code_hash.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return 1\n", "return 2\n"),
        ("def inner(width):\n", "def inner(width):\n    # why\n\n"),
        ("The old text.", "Another text."),
    ],
)
def test_another_function_or_a_comment_does_not_change_the_code(module, old, new):
    before = drawing_code("module_that_draws:draw_one")
    assert old in MODULE
    module.write_text(MODULE.replace(old, new))
    assert drawing_code("module_that_draws:draw_one") == before


def test_a_drawing_function_that_no_longer_exists_has_no_code(module):
    assert drawing_code("module_that_draws:draw_none") == drawing_code("no.such.module:draw") == drawing_code("") == ""


@pytest.mark.parametrize("name", ["attention", "data", "models", "results"])
def test_every_drawing_function_signs_its_figure(name):
    module = import_module(f"mammo_utils.plots.{name}")
    functions = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    drawing = [f for f in functions if f.__name__.startswith("draw_")]
    assert drawing and all(hasattr(f, "__wrapped__") for f in drawing)
    assert all(drawing_code(f"{f.__module__}:{f.__qualname__}") for f in drawing)


def test_the_same_figure_has_the_same_bytes_and_one_entry(tmp_path):
    first = save(tmp_path).read_bytes()
    assert save(tmp_path).read_bytes() == first
    save(tmp_path, "another")
    assert [entry["figure"] for entry in read_manifest(tmp_path)] == ["another.png", "one.png"]
    assert not list(tmp_path.glob(".*.part"))


def test_a_synthetic_figure_is_marked_once(tmp_path):
    drawn = figure()
    for _ in range(2):
        save_figure(drawn, "one", tmp_path, notebook="05_results", synthetic=True)
    assert [text.get_text() for text in drawn.texts] == [MARK]
    assert save(tmp_path, "real", synthetic=False).read_bytes() != save(tmp_path, "marked").read_bytes()


def test_a_name_that_is_a_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'\.\./one' may contain only letters"):
        save(tmp_path, "../one")
    plt.close("all")
