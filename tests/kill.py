"""Training killed at random moments: ``python -m tests.kill --times 20 --seed 0``.

A small run is trained undisturbed, then again and again in a process of its own that SIGKILL (or, by --signal SIGTERM,
what a scheduler sends first) ends at a seeded random moment, and goes on at the next start. Each time it ends, its
metrics, epochs, predictions and weights must be those of the undisturbed run, to the last bit.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from mammo_utils.io import project_root, read_json
from mammo_utils.study import RunSpec
from mammo_utils.training.run import train_run
from tests.workflow.processes import gone, parent_of, processes_of


def start(spec: RunSpec, began) -> None:
    torch.set_num_threads(1)
    began.set()
    train_run(spec)


def results(folder: Path) -> dict:
    """All that a run leaves in its folder but the seconds that it took and the study's name."""
    kept = {
        name: value
        for name, value in read_json(folder / "metrics.json").items()
        if name not in ("seconds", "study", "files")
    }
    return {
        "metrics": kept,
        "epochs": pd.read_csv(folder / "epochs.csv").drop(columns="seconds"),
        "predictions": pd.read_parquet(folder / "predictions.parquet"),
        "weights": {name: tensor.numpy() for name, tensor in load_file(folder / "weights.safetensors").items()},
    }


def assert_equal(found: dict, expected: dict) -> None:
    assert found["metrics"] == expected["metrics"]
    for name in ("epochs", "predictions"):
        pd.testing.assert_frame_equal(found[name], expected[name], check_exact=True)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        assert np.array_equal(found["weights"][name], value), name


def kill(spec: RunSpec, times: int, seed: int, number: signal.Signals = signal.SIGKILL) -> list[str]:
    """End the run's training `times` times by a signal; one line each, and one where it ended by itself."""
    context, draw, lines = multiprocessing.get_context("spawn"), random.Random(seed), []
    shutil.rmtree(spec.folder, ignore_errors=True)
    begin = time.perf_counter()
    train_run(spec)
    whole = time.perf_counter() - begin
    expected = results(spec.folder)
    shutil.rmtree(spec.folder, ignore_errors=True)
    kills = 0
    while True:
        began = context.Event()
        process = context.Process(target=start, args=(spec, began))
        process.start()
        began.wait(120)
        process.join(draw.uniform(0, 0.8 * whole) if kills < times else None)
        if process.is_alive() and not (spec.folder / "metrics.json").exists():
            os.kill(process.pid, number)
            process.join()
            # the tracker of shared memory belongs to this process, not to the killed one
            left = [pid for pid in processes_of(project_root()) if parent_of(pid) != os.getpid() != pid]
            assert all(gone(pid, 60) for pid in left), "the killed run leaves a process behind"
            kills += 1
            there = sorted(file.name for file in spec.folder.glob("*")) if spec.folder.is_dir() else []
            lines.append(f"{kills}: {number.name}, leaves {', '.join(there) or 'nothing'}")
            continue
        process.join()
        assert process.exitcode == 0, process.exitcode
        assert_equal(results(spec.folder), expected)
        assert not [file.name for file in spec.folder.iterdir() if file.name.endswith(".part")]
        lines.append("ended by itself: equal to the last bit")
        if kills == times:
            return lines
        shutil.rmtree(spec.folder, ignore_errors=True)


def main() -> None:
    from tests.conftest import SMALL, prepare

    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", default="hybrid_shared-multi-1v5-seed0")
    parser.add_argument("--signal", choices=["SIGKILL", "SIGTERM"], default="SIGKILL")
    a = parser.parse_args()
    from mammo_utils.study import load_study

    study_file = project_root() / "config" / "paper.yaml"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MAMMO_PROJECT"] = folder
        (Path(folder) / "config").mkdir()
        (Path(folder) / "config" / "paper.yaml").write_text(study_file.read_text())
        torch.set_num_threads(1)
        study = prepare(load_study("config/paper.yaml", (*SMALL, "training.epochs=6")))
        spec = next(run for run in study.runs() if run.id == a.run)
        print("\n".join(kill(spec, a.times, a.seed, signal.Signals[a.signal])))


if __name__ == "__main__":
    main()
