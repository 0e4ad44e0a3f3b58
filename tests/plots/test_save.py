"""A figure's file and its entry in the manifest."""

import matplotlib.pyplot as plt
import pytest

from mammo_utils.plots.save import MARK, read_manifest, save_figure
from mammo_utils.plots.style import STYLE, SYSTEM_COLOURS, styled
from mammo_utils.provenance import code_hash, file_hash


@styled
def figure():
    drawn, axis = plt.subplots(figsize=(2, 2))
    axis.plot([0, 1])
    return drawn


def save(folder, name="one", synthetic=True, **more):
    path = save_figure(figure(), name, folder, notebook="05_results", synthetic=synthetic, **more)
    plt.close("all")
    return path


def test_the_entry_says_where_the_figure_comes_from(tmp_path):
    path = save(tmp_path, runs=["a", "b"], data="demo 1234", caption="A line.")
    (entry,) = read_manifest(tmp_path)
    assert entry["figure"] == "one.png" and entry["sha256"] == file_hash(path)
    assert (entry["notebook"], entry["runs"], entry["data"]) == ("05_results", ["a", "b"], "demo 1234")
    assert (
        entry["code"] == code_hash(*entry["modules"]) and entry["caption"] == "A line." and entry["synthetic"] is True
    )


def test_the_same_figure_has_the_same_bytes_and_one_entry(tmp_path):
    first = save(tmp_path).read_bytes()
    assert save(tmp_path).read_bytes() == first
    save(tmp_path, "another")
    assert [entry["figure"] for entry in read_manifest(tmp_path)] == ["another.png", "one.png"]
    assert not list(tmp_path.glob(".*.part"))


def test_synthetic_is_written_on_the_face(tmp_path):
    drawn = figure()
    for _ in range(2):
        save_figure(drawn, "one", tmp_path, notebook="05_results", synthetic=True)
    assert [text.get_text() for text in drawn.texts] == [MARK]
    assert save(tmp_path, "real", synthetic=False).read_bytes() != save(tmp_path, "marked").read_bytes()


def test_a_name_that_is_a_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'\.\./one' is not made of letters"):
        save(tmp_path, "../one")
    plt.close("all")


def test_drawing_leaves_matplotlibs_settings_alone_and_systems_have_colours_of_their_own():
    before = dict(plt.rcParams)
    figure()
    plt.close("all")
    assert dict(plt.rcParams) == before and STYLE["font.size"] != before["font.size"]
    assert len(set(SYSTEM_COLOURS.values())) == 6
