"""Runs of one machine spread over its GPUs; no GPU is needed to tell."""

import os
import subprocess
import sys

import pytest

from mammo_utils.workflow.gpus import VISIBLE, count_gpus, take_gpus

INSIDE = []  # what is no longer held lets go


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setenv(VISIBLE, "")  # so that it is restored
    monkeypatch.delenv(VISIBLE)
    INSIDE.clear()


def taken(folder, wanted=1, count=2, said=None):
    """Enter and stay inside; returns the numbers and what a process started now would see, with the way out."""
    os.environ.pop(VISIBLE, None)
    if said is not None:
        os.environ[VISIBLE] = said
    use = take_gpus(wanted, folder, count)
    INSIDE.append(use)
    return use.__enter__(), os.environ.get(VISIBLE), use


def test_each_run_takes_the_gpu_that_is_least_used(tmp_path):
    uses = [taken(tmp_path) for _ in range(5)]
    assert [use[0] for use in uses] == [["0"], ["1"], ["0"], ["1"], ["0"]], "several runs may share one"
    assert [use[1] for use in uses] == ["0", "1", "0", "1", "0"], "what the kernel will see"
    for use in (uses[0], uses[2], uses[4]):
        use[2].__exit__(None, None, None)
    assert [taken(tmp_path)[0] for _ in range(4)] == [["0"], ["0"], ["0"], ["1"]]


def test_a_killed_run_lets_go(tmp_path):
    code = "import os, pathlib; from mammo_utils.workflow.gpus import take_gpus; use = take_gpus(1, "
    code += f"pathlib.Path({str(tmp_path)!r}), 2); print(use.__enter__(), flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.stdout == "['0']\n"
    assert taken(tmp_path)[0] == ["0"]


def test_several_processes_take_several(tmp_path):
    assert taken(tmp_path, count=4)[0] == ["0"]
    assert taken(tmp_path, wanted=2, count=4)[1] == "1,2"
    assert taken(tmp_path, wanted=2, count=4)[0] == ["0", "3"]


def test_what_a_scheduler_has_chosen_stays_and_a_list_is_chosen_from(tmp_path):
    assert taken(tmp_path, said="5")[:2] == ([], "5")
    assert taken(tmp_path, wanted=2, said="GPU-a,GPU-b")[:2] == ([], "GPU-a,GPU-b")
    assert taken(tmp_path, said="2,3")[1] == "2" and taken(tmp_path, said="2,3")[1] == "3"


def test_nothing_to_choose_changes_nothing(tmp_path):
    for wanted, count in ((1, 0), (1, 1), (0, 4), (2, 1)):
        assert taken(tmp_path, wanted, count)[:2] == ([], None)
    assert not list(tmp_path.iterdir())


def test_the_drivers_list_is_read(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus() == 0, "no driver"
    lines = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\nGPU 1: NVIDIA L4 (UUID: GPU-2)"
    command.write_text(f"#!/bin/sh\necho '{lines}'\n")
    command.chmod(0o755)
    assert count_gpus() == 2
    command.write_text(f"#!/bin/sh\necho '{lines}\n  MIG 1g.10gb Device 0: (UUID: MIG-3)'\n")
    assert count_gpus() == 0
