"""The command for a machine with a GPU: its processes, its folder, the build and, at tiny size, its steps."""

import os
import sys
import tarfile

import pytest
import torch

from benchmarks import gpu, gpu_steps, mamba_build
from mammo_utils.io import read_json, write_json
from mammo_utils.models.ss2d import SS2D
from mammo_utils.study import load_study
from mammo_utils.vocabulary import SYSTEMS

TINY = gpu_steps.Plan(device="cpu", **gpu_steps.TINY)
ARGUMENTS = ["--device", "cpu", "--tiny", "--minutes", "1"]
CHILD = """
import json, os, pathlib, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
with (folder / "called").open("a") as file:
    print(name, os.getpid(), file=file)
(folder / f"{name}.json").write_text(json.dumps({"outcome": "stopped", "result": {name + " part": 1}}))
if name == (folder / "slow").read_text():
    time.sleep(60)
if name == (folder / "broken").read_text():
    raise ValueError("no such card")
(folder / f"{name}.json").write_text(json.dumps({"outcome": "stopped", "result": {name + " part": 2}}))
"""


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Steps that a small script plays: one may fail, one may take too long."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(gpu, "CHILD", (sys.executable, str(script)))

    def run(*arguments, slow="", broken=""):
        (folder / "slow").write_text(slow)
        (folder / "broken").write_text(broken)
        (folder / "called").write_text("")
        code = gpu.main([*arguments, *ARGUMENTS, "--out", str(folder)])
        called = dict(line.split() for line in (folder / "called").read_text().splitlines())
        return code, called, read_json(folder / "gpu.json")

    return run


def outcomes(record):
    return {name: step["outcome"] for name, step in record["outcomes"].items()}


def test_a_step_that_fails_does_not_stop_the_others(steps, capsys):
    code, called, record = steps(broken="scans")
    assert code == 1 and list(called) == list(gpu_steps.STEPS)
    assert outcomes(record) == dict.fromkeys(gpu_steps.STEPS, "done") | {"scans": "failed"}
    assert record["outcomes"]["scans"]["reason"] == "ValueError: no such card"
    assert record["scans part"] == 1 and record["steps part"] == 2, "what was measured before stays"
    assert "scans        failed" in capsys.readouterr().out


def test_a_stopped_call_is_continued(steps, monkeypatch, tmp_path):
    monkeypatch.setitem(gpu_steps.STEPS, "steps", (None, 1 / 60))
    code, called, record = steps(slow="steps")
    assert code == 1 and outcomes(record) == dict.fromkeys(gpu_steps.STEPS, "done") | {"steps": "out of time"}
    assert record["steps part"] == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(called["steps"]), 0)
    (tmp_path / "out" / "epochs.json").unlink()  # as if the call had been killed before it
    write_json(tmp_path / "out" / "memory.json", {"outcome": "stopped", "result": {"memory part": 1}})  # and in it
    monkeypatch.setitem(gpu_steps.STEPS, "steps", (None, 1))
    code, called, record = steps()
    assert code == 0 and list(called) == ["steps", "epochs", "memory"]
    assert set(outcomes(record).values()) == {"done"} and record["steps part"] == record["memory part"] == 2
    assert list(steps("parity")[1]) == ["parity"], "a step that is named runs in any case"


def test_no_step_starts_when_the_time_is_used_up(steps, monkeypatch, capsys):
    now = iter(range(0, 10**6, 20))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(now))
    _, called, record = steps()
    assert 0 < len(called) < 3 and outcomes(record)["projection"] == "missing"
    assert "projection: not started, the time is used up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64"], "another device or size"),
        (["--mamba", "none.tar.gz"], "no file none.tar.gz"),
        (["scan"], "no step 'scan'"),
    ],
)
def test_bad_arguments(steps, arguments, message, capsys):
    steps("environment")
    with pytest.raises(SystemExit):
        steps(*arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_missing_gpu_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "torch sees no GPU" in capsys.readouterr().err


SETUP = """
import os, sys
from pathlib import Path

cc_flag, bare_metal_version = [], 13
if bare_metal_version <= 12:
    cc_flag.append("-gencode")
    cc_flag.append("arch=compute_53,code=sm_53")
cc_flag.append("-gencode")
cc_flag.append("arch=compute_80,code=sm_80")
if bare_metal_version >= 11.8:
    cc_flag.append("-gencode")
    cc_flag.append("arch=compute_90,code=sm_90")
if bare_metal_version >= 12.8:
    cc_flag.append("-gencode")
    cc_flag.append("arch=compute_100,code=sm_100")
assert sys.argv[1:] == ["build_ext", "--inplace"]
names = ("MAMBA_FORCE_BUILD", "MAMBA_KEEP_CUDA_BUILD")
Path("selective_scan_cuda.so").write_text(" ".join(cc_flag + [os.environ[name] for name in names]))
"""


def make_source(folder, setup):
    (folder / "mamba_ssm-2").mkdir(exist_ok=True)
    (folder / "mamba_ssm-2" / "setup.py").write_text(setup)
    with tarfile.open(folder / "mamba_ssm-2.tar.gz", "w:gz") as archive:
        archive.add(folder / "mamba_ssm-2", "mamba_ssm-2")
    return folder / "mamba_ssm-2.tar.gz"


def test_mamba_is_built_for_one_card(tmp_path):
    """Each block of an architecture that is not wanted stays valid Python."""
    source = make_source(tmp_path, SETUP)
    for architecture in ("90", "100"):
        file = mamba_build.build_kernel(source, tmp_path / "out", architecture)
        assert file == tmp_path / "out" / mamba_build.KERNEL / "selective_scan_cuda.so"
        assert not (tmp_path / "out" / "mamba").exists()
        flags = f"-gencode arch=compute_{architecture},code=sm_{architecture}"
        assert file.read_text() == f"{flags} TRUE TRUE"


def test_a_source_that_cannot_be_built_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cut down to compute_75; it names \['53', '80', '90', '100'\]"):
        mamba_build.keep_architecture(SETUP, "75")
    with pytest.raises(ValueError, match="cut down to compute_90"):
        mamba_build.keep_architecture(SETUP + 'cc_flag += ["-gencode", "arch=compute_75,code=sm_75"]\n', "90")
    with pytest.raises(FileNotFoundError, match="left no selective_scan_cuda"):
        mamba_build.build_kernel(make_source(tmp_path, SETUP.split("Path(")[0]), tmp_path / "out", "90")


def test_a_real_step_in_its_process(tmp_path):
    assert gpu.main(["mamba", *ARGUMENTS, "--minutes", "5", "--out", str(tmp_path)]) == 0
    assert read_json(tmp_path / "gpu.json")["mamba"] == {"built": False, "reason": "no GPU"}


def test_errors_of_a_kernel(monkeypatch):
    """The errors are relative to the largest value, and a kernel that fails is a row with its error."""
    found = gpu_steps.measure_errors("cpu", "float32", (3, 2), "cpu")["errors"]
    assert list(found) == "y u delta A B C D bias".split() and 0 < max(found.values()) < 1e-5
    assert 1e-5 < max(gpu_steps.measure_errors("cpu", "bfloat16", (3, 2), "cpu")["errors"].values()) < 1e-2
    original = gpu_steps.scan_paths

    def twice(*inputs, backend, **options):
        return original(*inputs, backend=backend, **options) * (2 if backend == "cpu" else 1)

    monkeypatch.setattr(gpu_steps, "scan_paths", twice)
    assert gpu_steps.measure_errors("cpu", "float32", (3, 2), "cpu")["errors"]["y"] == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(gpu_steps, "measure_errors", lambda *_: 1 / 0)
    *_, last = gpu_steps.compare_kernels(TINY, None)
    assert {row["error"] for row in last["parity"]} == {"ZeroDivisionError: division by zero"}


def test_hours_of_the_paper(tmp_path):
    """54 runs of 100 epochs of 1,088 exams: 163.2 hours at 10 exams/s."""
    rows = [{"exams_per_second": rate} for rate in (1, 1, 1, 10, 20)]
    found = [{"systems": [{"system": name, "rows": rows}]} for name in SYSTEMS]
    write_json(tmp_path / "epochs.json", {"result": {"epochs": found}})
    (record,) = gpu_steps.project_hours(TINY, tmp_path)
    assert list(record["projection"]["hours"].values()) == pytest.approx([163.2, 81.6])
    assert record["projection"]["runs"] == len(load_study("config/paper.yaml").runs()) == 54
    write_json(tmp_path / "epochs.json", {"result": {"epochs": found[1:]}})
    with pytest.raises(ValueError, match="has not measured"):
        list(gpu_steps.project_hours(TINY, tmp_path))


def test_each_option_is_measured(monkeypatch):
    called = []
    monkeypatch.setattr(gpu_steps, "_measure_option", lambda plan, batch, **changes: called.append(changes) or {})
    *_, last = gpu_steps.measure_options(TINY, None)
    names = [row["name"] for row in last["options"]]
    assert names[:2] == ["as trained", "batches of 4"] and names[-1] == "as trained, again"
    assert dict(zip(names, called, strict=True))["float32"] == {"precision": "float32"}


@pytest.mark.parametrize("nchw", [False, True])
def test_the_layout_of_the_depthwise_convolution(nchw, monkeypatch):
    layouts, original = set(), gpu_steps.build_system

    def build(*arguments, **options):
        system = original(*arguments, **options)
        for module in (m for m in system.modules() if isinstance(m, SS2D)):
            module.conv.register_forward_hook(lambda _, inputs, y: layouts.add(inputs[0].is_contiguous()))
        return system

    monkeypatch.setattr(gpu_steps, "build_system", build)
    found = gpu_steps._measure_option(TINY, 2, nchw=nchw)
    assert layouts == {nchw} and found["exams_per_second"] > 0 and found["peak_memory_mb"] > 0


@pytest.mark.slow
def test_every_step_at_tiny_size(tmp_path):
    assert gpu.main([*ARGUMENTS, "--minutes", "60", "--out", str(tmp_path)]) == 0
