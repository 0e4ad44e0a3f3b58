"""The benchmarks at tiny size: alternatives agree, parts of a step add up, records are complete."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import epochs, images, load_records, measure, report, scans, steps
from mammo_utils.config import Training
from mammo_utils.data.sources import read_cohort
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.models import ss2d
from mammo_utils.models.ss2d import SS2D
from mammo_utils.models.system import build_system
from mammo_utils.study import load_study
from mammo_utils.synthetic.release import write_release
from mammo_utils.training.dataset import make_exam_set
from tests.conftest import CHECKOUT
from tests.operations import Operations
from tests.release_builder import write_dicom

CPU = torch.device("cpu")


def gradients(function, tensors):
    y = function(*tensors)
    torch.manual_seed(0)
    return [y.detach(), *torch.autograd.grad((y * torch.randn(y.shape)).sum(), tensors)]


@pytest.mark.parametrize("length", [1, 2, 7, 37, 64])
def test_the_alternatives_agree_in_values_and_gradients(length):
    tensors = scans.draw_inputs(2, 3, 4, length, CPU)
    found = {name: gradients(function, tensors) for name, function in scans.list_scans(CPU).items()}
    assert next(iter(found)) == "backend cpu" and len(found) == 4
    for name, values in found.items():
        for value, expected in zip(values, found["backend reference"], strict=True):
            torch.testing.assert_close(
                value, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_ss2d_with_four_copies_is_ss2d():
    torch.manual_seed(0)
    module, image = SS2D(6, states=4), torch.randn(2, 3, 5, 6, requires_grad=True)
    copies = scans.FourCopies(6, states=4)
    copies.load_state_dict(module.state_dict())
    found, expected = (gradients(lambda image, *_, m=m: m(image), [image, *m.parameters()]) for m in (copies, module))
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


def test_ss2d_with_four_copies_reorders_as_medmamba_does():
    """By views, stack, flip and cat, not by an index, whose backward adds position by position."""
    module = scans.FourCopies(4, states=2)
    with Operations() as operations:
        module(torch.randn(1, 3, 5, 4))
    names = operations.names(15 * 8)
    assert {"stack", "flip", "cat"} <= set(names) and not set(names) & {"index", "gather", "index_select"}


def test_a_gpu_with_triton_alone(monkeypatch):
    """Triton scans images only: what needs a scan of sequences is left out."""
    row = dict.fromkeys([*report.TIMES, "peak_memory_in_input"], 1.0)
    monkeypatch.setattr(scans, "pick_backend", lambda *_: "triton")
    monkeypatch.setattr(scans, "compare", lambda functions, *_: [row | {"name": name} for name in functions])
    assert next(iter(scans.list_scans(CPU))) == "backend reference"
    found = scans.compare_ss2d(2, 2, 1, CPU)
    assert [row["name"] for row in found["rows"]] == ["four bare scans", "SS2D, triton"]
    text = "\n".join(report.describe({"ss2d": [found]}))
    assert "SS2D, triton: 1.00 times four bare scans" in text and text.count(": 1.00 times") == 1


def test_peak_memory_of_a_known_allocation():
    def work():
        first = torch.ones(2**18)  # 1 MB
        second = first + 1
        del first
        third = second + 1  # in the first one's place
        return third.sum()

    assert 2.0 <= measure.peak_memory(work, CPU) < 2.1


def test_a_function_does_not_affect_the_measurement_of_the_next():
    """No tensor has a gradient when a call starts, so memory is that of one call."""
    x, weight = (torch.ones(2**18, requires_grad=True) for _ in range(2))

    def product(x):
        assert x.grad is None and weight.grad is None
        return x * weight

    alone = measure.peak_memory(lambda: product(x).sum().backward(), CPU)
    rows = measure.compare({"one": product, "two": product}, [x], 2, CPU, [weight])
    assert [row["peak_memory_mb"] for row in rows] == [alone, alone] and alone >= 2
    assert x.grad is None and weight.grad is None


def test_memory_of_a_step_includes_its_gradients(monkeypatch):
    """Measured is a step after zero_grad, not one that frees the gradients of the previous step."""
    held = []
    monkeypatch.setattr(
        steps, "make_step", lambda system, *a: lambda clock: held.append([p.grad for p in system.parameters()])
    )
    monkeypatch.setattr(steps, "peak_memory", lambda function, device: function() or 1.0)
    built = steps.build_system

    def with_gradients(*arguments, **options):
        system = built(*arguments, **options)
        for p in system.parameters():
            p.grad = torch.zeros_like(p)
        return system

    monkeypatch.setattr(steps, "build_system", with_gradients)
    steps._measure_step("resnet18", load_study("config/demo.yaml"), 32, 1, 1, CPU)
    assert held[0][0] is not None and not any(g is not None for g in held[-1])


def test_the_floor_is_that_of_exponentials_and_bytes(monkeypatch):
    """With 2 ms for torch's exp of a million numbers and 2 ms for their copy: 2 exponentials a state, and each byte
    that is read or written."""
    monkeypatch.setattr(scans, "time_call", lambda function, device: 2.0)
    monkeypatch.setattr(scans, "compare", lambda *a: [])
    million = 2**20
    u, A, B = 1 * 4 * 20, 4 * 2, 1 * 2 * 20
    (found,) = scans.compare_scans([20], 1, 4, 2, 1, CPU)
    bytes_moved = 4 * (3 * (2 * u + A + 2 * B) + 2 * u)
    assert found["floor"]["exponentials_ms"] == pytest.approx(2 * 160 * 2 / million)
    assert found["floor"]["bytes_ms"] == pytest.approx(bytes_moved * 2 / (8 * million))
    found = scans.compare_ss2d(3, 5, 1, CPU, batch=2)
    assert found["floor"]["exponentials_ms"] == pytest.approx(2 * (2 * 4 * 25 * 6 * 16) * 2 / million)


def test_the_scan_holds_no_array_of_L_D_N():
    """Forward and backward within 8 times the input, at any length; an L x D x N array alone would be 16."""
    for length in (64, 512):
        tensors = scans.draw_inputs(1, 64, 16, length, CPU)
        name, function = next(iter(scans.list_scans(CPU).items()))
        assert name == "backend cpu"
        peak = measure.peak_memory(lambda f=function, t=tensors: f(*t).sum().backward(), CPU)
        assert peak * 2**20 < 8 * tensors[0].numel() * 4


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet18", {"ResNet stem", "ResNet layer4"}),
        ("vssm_shared", {"patches", "convolved halves", "scanned halves but scans", "four scans"}),
        ("hybrid_view_specific", {"ResNet layer2", "patches", "four scans"}),
    ],
)
def test_the_parts_of_a_step(name, parts):
    """The timer changes no number, every part takes time forward and backward, and the parts add up to the step."""
    study = load_study("config/demo.yaml")
    plain, timed = (build_system(name, dropout=0.0, backend="cpu") for _ in range(2))
    timed.load_state_dict(plain.state_dict())
    timer = steps.PartTimer(CPU)
    steps.make_step(plain, study, 32, 2, CPU)()
    with steps.timed_parts(timed, timer):
        step = steps.make_step(timed, study, 32, 2, CPU)
        whole = measure.time_call(lambda: step(timer), CPU)
    for a, b in zip(plain.parameters(), timed.parameters(), strict=True):
        assert torch.equal(a, b)
    spent = timer.milliseconds()
    always = {steps.BATCH, steps.OPTIMISER, steps.REST}
    assert {part for part, _ in spent} >= parts | always
    for part in parts:
        assert spent[part, "forward_ms"] > 0 and spent[part, "backward_ms"] > 0
    assert sum(spent.values()) == pytest.approx(whole, rel=0.05)
    assert ss2d.scan_paths.__module__ == "mammo_utils.models.selective_scan", "restored"


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    sizes = ["--lengths", "20", "--batch", "1", "--channels", "4", "--states", "2", "--rounds", "1", "--sides", "4"]
    parts = ["scans", "ss2d", "steps"]
    earlier = {"scans": ["old"], "images": [{"size": 1}], "ablations": {"a": 1}, "epochs": []}
    (tmp_path / "record.json").write_text(json.dumps(earlier))
    command.main([*parts, *sizes, "--size", "32", "--json", str(tmp_path / "record.json")])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "record.json").read_text())
    assert all(record[part] == earlier[part] for part in ("images", "ablations", "epochs")), "not measured now"
    for row in record["scans"][0]["rows"] + record["ss2d"][0]["rows"]:
        assert row["name"] in printed and row["forward_backward_ms"] > 0
    assert [row["system"] for row in record["steps"]] == list(steps.SYSTEMS)
    assert "torch" in str(record["environment"]) and record["environment"]["cpu"]
    copies, own = record["ss2d"][0]["rows"][-1], record["ss2d"][0]["rows"][1]
    ratio = copies["forward_backward_ms"] / own["forward_backward_ms"]
    assert f"SS2D, four copies, cpu: {ratio:.2f} times SS2D, cpu\n" in printed
    assert " / u\n" in printed and " / image\n" in printed
    with pytest.raises(SystemExit):
        command.main(["scan"])
    assert "accepted are scans, ss2d, steps, epochs, images, ablations, batch_norm" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["ablations", "--settings", "name=unprepared"])
    assert "unprepared/cohort is missing; run notebook 02" in capsys.readouterr().err


def test_the_numbers_in_the_docs_are_those_of_the_record(tmp_path):
    """After a new record: `python -m benchmarks --docs`."""
    text, record = (CHECKOUT / "docs" / "speed.md").read_text(encoding="utf-8"), load_records()["cpu"]
    assert "\n".join([report.START, report.describe_for_docs(record), report.END]) in text
    (tmp_path / "speed.md").write_text(text, encoding="utf-8")
    record["scans"][0]["rows"][0]["forward_backward_ms"] = 1234.5
    report.update_docs(tmp_path / "speed.md", record | {"environment": record["environment"] | {"cpu": "a 6502"}})
    changed = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert "| 1,234 ms |" in changed and "threads of a 6502, float32" in changed
    assert changed.split(report.END)[1] == text.split(report.END)[1]


def test_preprocessing_beside_its_floor():
    found = images.compare_preprocessing(4, 16, 1, 1, (60, 50))
    assert found["times_floor"] == found["ours_ms"] / found["floor_ms"] and found["plain_ms"] > 0


def test_the_ways_to_preprocess_agree(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, images.SHAPE, dtype=np.uint8)
    write_dicom(tmp_path / "a.dcm", "D1-0001", "R", "CC", 1, values=values)
    a, b = (f(tmp_path / "a.dcm", 64).astype(int) for f in (images.prepare_as_study, images.prepare_plainly))
    assert np.abs(a - b).max() <= 1
    assert (images.prepare_at_floor(tmp_path / "a.dcm", 64)[:, ::-1] == a).all()


def test_epochs_compare_all_trainers_on_the_same_exams(monkeypatch):
    study = load_study(
        "config/demo.yaml", ("training.batch_size=3", "data.synthetic={n_exams: 4, rows: 64, columns: 48, seed: 0}")
    )
    seen, sets = [], []
    naive_epoch, train_epoch = epochs.train_naive_epoch, epochs.train_epoch
    monkeypatch.setattr(epochs, "train_naive_epoch", lambda *a: seen.append(("naive", naive_epoch(*a))))
    monkeypatch.setattr(epochs, "train_epoch", lambda *a: sets.append(a[1]) or seen.append((a[4], train_epoch(*a)[0])))
    found = epochs.compare_epochs(study, 32, 6, 1, torch.device("cpu"), 0, ["hybrid_shared"])
    rows = found["systems"][0]["rows"]
    assert [row["name"] for row in rows[:3]] == ["naive trainer", "naive trainer, this scan", "this trainer, float32"]
    assert all(row["exams_per_second"] > 0 for row in rows) and rows[0]["times_naive"] == 1
    assert found["paper_hours"] is None, "only of all systems together"
    others = found["systems"][0]["alternatives"]
    assert [row["name"] for row in others] == [name for name, *_ in epochs.ALTERNATIVES[:2]], "without the compiled one"
    assert found["times_naive"] == pytest.approx([rows[i]["times_naive"] for i in (-2, -1)])
    losses = [loss for _, loss in seen]
    n = len(rows) + len(others)
    assert len(losses) == 2 * n and all(0.1 < loss < 10 for loss in losses)
    asked = [(a.precision, a.channels_last, a.fused, a.store) for a, _ in seen[2:n]]
    assert asked[0] == ("float32", False, False, "auto") and asked[3] == ("bfloat16", True, True, "auto")
    assert asked[4] == ("bfloat16", True, True, "mapped") and asked[5] == asked[3]
    places = [exams.images.data_ptr() for exams in sets[:6]]
    assert len({*places[:4], places[5]}) == 1 and places[4] != places[0], "the fifth alone reads the store's file"
    assert losses[n - 2] == losses[n - 3], "where the images are changes no number"
    assert losses[n - 1] != losses[n - 3], "a masked view is another model"


def test_naive_pictures_equal_those_of_the_store(tmp_path):
    """Each PNG, without augmentation, equals the image of that exam and view in the store, but for the filter."""
    write_release(tmp_path / "data", n_exams=4, rows=64, columns=48, seed=0, contrast=1, noise=1, null=False, workers=1)
    cohort = read_cohort("cmmd", tmp_path / "data")
    store = build_store(cohort, tmp_path / "store", size=32, workers=1)
    cohort = apply_store(cohort, store)
    still = Training(augmentation={"rotation": 0, "translation": 0, "scale": 0, "flip": 0})
    exams = make_exam_set(cohort.exams, pd.Series(cohort.exams.index, cohort.exams.index), store, (1, 5), "cpu")
    files = epochs.write_pictures(cohort, tmp_path / "data", tmp_path / "pictures")
    pictures = epochs.PictureDataset(exams, files, 32, still)
    for i in range(len(exams)):
        images, present, _ = pictures[i]
        expected = exams.batch(torch.tensor([i])).images[0]
        assert present.equal(exams.present[i])
        for view in present.nonzero().flatten():
            same = [(images[view] - e).abs().mean() for e in (expected[view], expected[view].flip(-1))]
            assert min(same) < 0.02
