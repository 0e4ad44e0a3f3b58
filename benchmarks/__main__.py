"""Measure what is fast on this machine and where the time goes: `python -m benchmarks`.

It prints tables, and with `--json FILE` writes the same as JSON: the selective scan beside its alternatives and a
floor; SS2D beside its bare scans and beside SS2D with four copies of the image; one training step of each system, part
by part; epochs of training beside a naive trainer's; preprocessing beside its floor. Alternatives are timed in
interleaved rounds in one process, and medians are compared, so that other load on the machine slows all of them alike.
`python -m benchmarks ablations` trains a run of a study with each ablation and compares the AUC, and
`python -m benchmarks batch_norm` scores each epoch of a run with several statistics of batch norm.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from benchmarks import load_records
from benchmarks.ablations import compare_ablations
from benchmarks.batch_norm import measure_batch_norm
from benchmarks.epochs import compare_epochs
from benchmarks.images import compare_preprocessing
from benchmarks.report import describe, update_docs
from benchmarks.scans import compare_scans, compare_ss2d
from benchmarks.steps import measure_steps
from mammo_utils.io import project_root, read_json, write_json
from mammo_utils.provenance import environment
from mammo_utils.study import load_study
from mammo_utils.training.run import device_name
from mammo_utils.vocabulary import REFERENCE, SYSTEMS

PARTS = ("scans", "ss2d", "steps", "epochs", "images")
STUDIED = ("ablations", "batch_norm")  # parts that train runs of a study, for minutes
CHANNELS = {64: 64, 32: 128}  # tokens a side -> channels, as the hybrid's two blocks scan at 512 px


def main(arguments: list[str] | None = None) -> None:
    """Run the command `python -m benchmarks`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"{', '.join((*PARTS, *STUDIED))}; the last two only if named")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], help="scans: steps")
    parser.add_argument("--batch", type=int, default=4, help="scans: batch size")
    parser.add_argument("--channels", type=int, default=192, help="scans: channels")
    parser.add_argument("--states", type=int, default=16, help="scans: states of each channel")
    parser.add_argument("--sides", type=int, nargs="+", default=list(CHANNELS), help="ss2d: tokens a side")
    parser.add_argument("--images", type=int, default=1, help="ss2d: batch size")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="ss2d: autocast")
    parser.add_argument(
        "--study", default="config/demo.yaml", help="steps, epochs, ablations, batch_norm: the study file"
    )
    parser.add_argument("--size", type=int, default=512, help="steps: pixels a side")
    parser.add_argument("--exams", type=int, default=1, help="steps: exams a batch")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, help="epochs: systems")
    parser.add_argument("--system", default=REFERENCE, choices=SYSTEMS, help="ablations, batch_norm: system")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="ablations, batch_norm: seeds")
    parser.add_argument("--settings", nargs="*", default=[], help="settings that replace those of the study file")
    parser.add_argument("--epoch-size", type=int, help="epochs: pixels a side; the study's by default")
    parser.add_argument("--epoch-exams", type=int, default=48, help="epochs: exams an epoch")
    parser.add_argument("--compile", action="store_true", help="epochs, ablations: compile encoders, too; minutes")
    parser.add_argument("--workers", type=int, default=0, help="epochs: processes of the naive trainer's DataLoader")
    parser.add_argument("--files", type=int, default=64, help="images: files a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the record; parts in it that are not measured now stay")
    parser.add_argument("--docs", action="store_true", help="measure nothing; write the record to docs/speed.md")
    a = parser.parse_args(arguments)
    if a.docs:
        return update_docs(project_root() / "docs" / "speed.md", load_records()["cpu"])
    parts, device, record = a.parts or PARTS, torch.device(a.device), {}
    if unknown := set(parts) - {*PARTS, *STUDIED}:
        parser.error(f"There is no part {min(unknown)!r}; accepted are {', '.join((*PARTS, *STUDIED))}.")
    study = load_study(a.study, a.settings)
    if set(parts) & set(STUDIED):
        specs = [study.run(a.system, study.grid.task_modes[0], study.grid.subsets[0], seed) for seed in a.seeds]
        torch.set_num_threads(specs[0].training.threads)
        try:
            if "ablations" in parts:
                record["ablations"] = compare_ablations(specs[0], a.seeds, study.evaluation, a.compile)
            if "batch_norm" in parts:
                record["batch_norm"] = [measure_batch_norm(spec) for spec in specs]
        except (ValueError, FileNotFoundError) as error:  # the message is for the user
            parser.exit(2, f"{error}\n")
    if set(parts) & set(PARTS):
        torch.set_num_threads(a.threads)
        record["environment"] = environment(device_name(device), a.threads) | {"cpu": find_cpu_name()}
        record |= {part: [] for part in PARTS}
    if "scans" in parts:
        record["scans"] = compare_scans(a.lengths, a.batch, a.channels, a.states, a.rounds, device)
    if "ss2d" in parts:
        options = {"batch": a.images, "dtype": a.dtype}
        record["ss2d"] = [compare_ss2d(CHANNELS.get(n, 64), n, a.rounds, device, **options) for n in a.sides]
    if "steps" in parts:
        record["steps"] = measure_steps(study, a.size, a.exams, a.rounds, device)
    if "epochs" in parts:
        size = a.epoch_size or study.images.size
        found = compare_epochs(study, size, a.epoch_exams, a.rounds, device, a.workers, a.systems, a.compile)
        record["epochs"] = [found]
    if "images" in parts:
        record["images"] = [compare_preprocessing(a.files, 512, a.threads, a.rounds)]
    print("\n".join(describe(record)))
    if a.json:
        old = read_json(a.json) if a.json.is_file() else {}
        write_json(a.json, old | {part: found for part, found in record.items() if found or part not in old})


def find_cpu_name() -> str:
    """The processor's model, from Linux's list or else from Python."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


if __name__ == "__main__":
    main()
