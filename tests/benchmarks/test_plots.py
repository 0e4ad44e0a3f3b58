"""The figures of a record show its numbers."""

import matplotlib.pyplot as plt
import pytest

from benchmarks import load_records, plots
from benchmarks.steps import PARTS

FLOOR = {"exponentials_ms": 2.0, "bytes_ms": 0.1}


def row(name, time, memory):
    return {
        "name": name, "forward_ms": time / 3, "forward_backward_ms": time, "times_slower": time / 5.0,
        "peak_memory_in_input": memory, "peak_memory_mb": memory,
    }  # fmt: skip


@pytest.fixture
def record():
    scan = {"length": 8, "batch": 1, "channels": 2, "states": 3}
    image = {"side": 4, "batch": 1, "channels": 2, "dtype": "float32"}
    parts = [{"part": "ResNet stem", "forward_ms": 3.0, "backward_ms": 5.0}]
    parts += [{"part": "four scans", "forward_ms": 10.0, "backward_ms": 2.0}]
    return {
        "environment": {"device": "cpu", "threads": 2, "versions": {"torch": "9.9"}},
        "scans": [scan | {"rows": [row("ours", 5.0, 4), row("a loop", 50.0, 80)], "floor": FLOOR}],
        "ss2d": [image | {"rows": [row("bare", 5.0, 4), row("SS2D", 6.0, 8), row("copies", 9.0, 9)], "floor": FLOOR}],
        "steps": [
            {"system": "hybrid_shared", "size": 64, "batch": 2, "peak_memory_mb": 12.0, "parts": parts},
            {"system": "resnet18", "size": 64, "batch": 2, "peak_memory_mb": 9.0, "parts": parts[:1]},
        ],
    }


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_scans(record):
    figure = plots.draw_scans(record)
    scan, ss2d = figure.axes
    assert scan.get_title() == "selective scan, B=1 D=2 N=3 L=8" and "4 × 4 tokens" in ss2d.get_title()
    (points,) = (c for c in scan.collections if hasattr(c, "get_sizes") and len(c.get_sizes()))
    assert points.get_offsets()[:, 0].tolist() == [5, 50]
    assert any("50 ms" in text and "×10.0" in text and "80 in" in text for text in texts(scan))
    assert " floor 2 ms" in texts(scan) and "2 threads, torch 9.9" in figure.get_suptitle()
    plt.close(figure)


def test_steps_add_up(record):
    figure = plots.draw_steps(record)
    (axis,) = figure.axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axis.containers}
    assert widths == {"ResNet stem": [4, 4], "four scans": [6, 0]}, "milliseconds an exam"
    assert any("10 ms" in text and "12 MB" in text for text in texts(axis))
    plt.close(figure)


def test_every_part_has_a_colour_of_its_own():
    assert len({colour.lower() for colour in PARTS.values()}) == len(PARTS) == 12


def test_the_stored_records_can_be_drawn():
    assert "cpu" in load_records()
    for record in load_records().values():
        assert {"versions", "device", "commit"} <= set(record["environment"])
        for figure in (plots.draw_scans(record), plots.draw_steps(record)):
            plt.close(figure)
