"""Measure a machine with a GPU by one command, in limited time and without a network: `python -m benchmarks.gpu`.

Each step runs in a process of its own with a time limit and saves its result as it grows, in FOLDER/<step>.json beside
its log. A later call with the same folder runs the steps that are not done; steps that are named run in any case.
FOLDER/gpu.json is the record of all steps, in the form of `python -m benchmarks --json`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_steps import CHECKOUT, STEPS, TINY, Plan
from benchmarks.mamba_build import KERNEL
from benchmarks.report import describe
from mammo_utils.io import exit_with_parent, folder_lock, plain_values, read_json, write_json
from mammo_utils.provenance import commit

CHILD = (sys.executable, "-m", "benchmarks.gpu")
SHORTEST = 5  # seconds; no step starts with less


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if all steps, or those that are named, are done, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", help=f"{', '.join(STEPS)}; all that are not done by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=25.0, help="time for all steps together")
    parser.add_argument("--mamba", type=Path, help="source distribution of mamba-ssm (.tar.gz), to be built")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="measure at tiny size, to try the command")
    parser.add_argument("--size", type=int, help="pixels a side in training")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if unknown := set(a.steps) - set(STEPS):
        parser.error(f"There is no step {min(unknown)!r}; accepted are {', '.join(STEPS)}.")
    if a.mamba and not a.mamba.is_file():
        parser.error(f"There is no file {a.mamba}; name the source distribution of mamba-ssm.")
    if a.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; use --device cpu --tiny to try the command without one.")
    changes = (TINY if a.tiny else {}) | ({"size": a.size} if a.size else {})
    plan = Plan(device=a.device, mamba=str(a.mamba.resolve()) if a.mamba else "", **changes)
    folder = a.out.resolve()
    if a.child:
        run_step(a.steps[0], plan, folder)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        measured = plain_values(asdict(plan) | {"mamba": ""})
        if (folder / "plan.json").is_file() and read_json(folder / "plan.json") != measured:
            parser.error(f"{a.out} holds measurements with another device or size; name another folder.")
        write_json(folder / "plan.json", measured)
        options = ["--out", str(folder), "--device", plan.device, "--size", str(plan.size)]
        options += ["--tiny"] * a.tiny + ["--mamba", plan.mamba] * bool(plan.mamba)
        record = run_steps(a.steps, folder, 60 * a.minutes, options)
    print("\n".join([*describe(record), "", *summarise(record)]))
    return 0 if all(record["outcomes"][name]["outcome"] == "done" for name in a.steps or STEPS) else 1


def run_step(name: str, plan: Plan, folder: Path) -> None:
    """Run one step in this process and save its result after each part."""
    exit_with_parent()
    result: dict[str, Any] = {}
    for part in STEPS[name][0](plan, folder):
        result |= part
        write_json(folder / f"{name}.json", {"outcome": "stopped", "commit": commit(), "result": result})


def run_steps(names: list[str], folder: Path, seconds: float, options: list[str]) -> dict[str, Any]:
    """Run steps one after another, each in its own process, and return the record of all that the folder holds.

    Args:
        names: Steps to run even if they are done; if empty, those that are not done.
        folder: Folder of the results.
        seconds: For all steps together. A step ends at its own limit or when they are used up.
        options: Options of this command, for the processes of the steps.
    """
    end = time.monotonic() + seconds
    for name, (_, minutes) in STEPS.items():
        if name not in names if names else _read_step(folder, name).get("outcome") == "done":
            continue
        left = end - time.monotonic()
        limit = min(60 * minutes * max(1, seconds / 1500), left)  # with more than 25 minutes a larger share
        if left < SHORTEST:
            print(f"{name}: not started, the time is used up", flush=True)
            continue
        print(f"{name}: at most {limit:.0f} s", flush=True)
        step = _run_process(name, folder, limit, options)
        reason = f": {step['reason']}" if step["reason"] else ""
        print(f"{name}: {step['outcome']} in {step['seconds']:.0f} s{reason}", flush=True)
        write_json(folder / "gpu.json", collect(folder))
    record = collect(folder)
    write_json(folder / "gpu.json", record)
    return record


def _run_process(name: str, folder: Path, limit: float, options: list[str]) -> dict[str, Any]:
    """Run one step in a process, whose children end with it, and save its outcome beside its result."""
    (folder / f"{name}.json").unlink(missing_ok=True)
    log = folder / f"{name}.log"
    paths = [str(folder / KERNEL), str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [*CHILD, name, *options, "--child"]
    start = time.monotonic()
    with log.open("w") as output:
        kinds: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, env=variables, **kinds)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")[:300]
    outcome = "done" if code == 0 else "out of time" if code is None else "failed"
    step = {"commit": commit(), "result": {}} | _read_step(folder, name) | {"outcome": outcome}
    step |= {"reason": {"done": "", "out of time": f"its limit was {limit:.0f} s"}.get(outcome, last)}
    step |= {"seconds": time.monotonic() - start}
    write_json(folder / f"{name}.json", step)
    return step


def _read_step(folder: Path, name: str) -> dict[str, Any]:
    file = folder / f"{name}.json"
    return read_json(file) if file.is_file() else {}


def collect(folder: Path) -> dict[str, Any]:
    """The record of all steps: the parts of their results, and their outcomes."""
    steps = {name: _read_step(folder, name) for name in STEPS}
    missing = {"outcome": "missing", "reason": "", "seconds": 0.0, "commit": ""}
    record: dict[str, Any] = {}
    for step in steps.values():
        record |= step.get("result", {})
    facts = {name: {key: step.get(key, value) for key, value in missing.items()} for name, step in steps.items()}
    return record | {"outcomes": facts}


def summarise(record: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: the outcome of each step, then what `describe` does not show."""
    for row in record.get("parity", []):
        worst = max(row["errors"].values(), default=0.0) if "errors" in row else None
        found = row.get("error") or f"largest relative error {worst:.1e}"
        yield "{backend} beside the reference, {dtype}, {shape[0]} x {shape[1]} tokens: ".format(**row) + found
    for row in record.get("options", []):
        found = row.get("error") or "{exams_per_second:.1f} exams/s, {peak_memory_mb:.0f} MB".format(**row)
        yield f"{row['system']}, {row['name']}, batch {row['batch']}: {found}"
    for row in record.get("memory", []):
        found = row.get("error") or f"{row['peak_mb']:.0f} MB"
        yield f"{row['system']}, {row['precision']}, peak of a training from its start: {found}"
    for row in record.get("repeatability", []):
        text = (
            "{system}, {precision}: two equal epochs differ by {weights:.1e} (weights), {predictions:.1e} (predictions)"
        )
        yield text.format(**row)
    if found := record.get("projection"):
        hours = ", ".join(f"{value:.1f} hours ({name})" for name, value in found["hours"].items())
        yield "{runs} runs of {epochs} epochs of {exams} exams at {size} px: ".format(**found) + hours
    yield f"{'step':12} {'outcome':12} seconds"
    for name, step in record["outcomes"].items():
        yield f"{name:12} {step['outcome']:12} {step['seconds']:7.0f}  {step['reason']}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
