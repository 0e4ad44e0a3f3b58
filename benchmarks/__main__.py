"""The speed ledger: ``python -m benchmarks`` says what is fast here, beside what, and where time goes.

It prints tables, and with ``--json FILE`` writes the same as JSON: the selective scan beside named alternatives
and the floor; SS2D beside its bare scans and beside SS2D with four copies of the image; one training step of each
system, part by part; epochs of training beside a naive trainer's; preprocessing beside its floor. Alternatives
are timed in turn, round after round in one process, and medians are compared, so that a busy machine is unjust to
none.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.epochs import epochs
from benchmarks.images import compare_preprocessing
from benchmarks.readme import rewrite
from benchmarks.scans import compare_scans, compare_ss2d
from benchmarks.steps import steps
from mammo_utils.config import load_study
from mammo_utils.io import project_root, read_json, write_json
from mammo_utils.provenance import environment
from mammo_utils.vocabulary import SYSTEMS

PARTS = ("scans", "ss2d", "steps", "epochs", "images")
CHANNELS = {64: 64, 32: 128}  # tokens a side: channels of what the hybrid's two blocks scan at 512 px


def tables(record: dict[str, Any]) -> Iterator[str]:
    """The record as lines to read."""
    for part in record["scans"]:
        yield "selective scan, B={batch} D={channels} N={states} L={length}".format(**part)
        yield from comparison(part, "u")
    for part in record["ss2d"]:
        yield "SS2D of {channels} channels, {side} x {side} tokens, {batch} image(s), {dtype}".format(**part)
        yield from comparison(part, "image")
        bare, own, *_, copies = part["rows"]
        ratios = [
            f"{a['forward_backward_ms'] / b['forward_backward_ms']:.2f}x" for a, b in ((copies, own), (own, bare))
        ]
        yield "  {name}: {0} {own}; {own}: {1} the bare scans".format(*ratios, name=copies["name"], own=own["name"])
    for part in record["steps"]:
        yield (
            f"{part['system']}: a training step of {part['batch']} exam(s) at {part['size']} px, "
            f"{part['step_ms']:.0f} ms, {part['exams_per_second']:.2f} exams/s, "
            f"{part['peak_memory_mb']:.0f} MB above the weights"
        )
        for row in part["parts"]:
            yield f"  {row['part']:32}{row['forward_ms']:>10.1f} ms{row['backward_ms']:>12.1f} ms"
    for part in record["epochs"]:
        sizes = "epochs of {exams} exams at {size} px in batches of {batch}".format(**part["systems"][0])
        yield f"{sizes}, the naive trainer's files of {part['pictures'][0]} x {part['pictures'][1]}"
        for found in part["systems"]:
            yield f"  {found['system']:40}{'exams/s':>10}{'x naive':>10}{'peak memory':>14}"
            for r in found["rows"] + found["alternatives"]:
                memory = "" if r["peak_memory_mb"] is None else f"{r['peak_memory_mb']:>11.0f} MB"
                yield f"    {r['name']:38}{r['exams_per_second']:>10.2f}{r['times_naive']:>10.1f}{memory}"
        exact, fast = part["times_naive"]
        yield f"  an epoch of each system: {exact:.1f}x the naive rate in float32, {fast:.1f}x with bfloat16"
        if part["paper_hours"] is not None:
            yield f"  54 runs of 100 epochs of 1,088 exams at this size: {part['paper_hours']:.1f} hours"
    for part in record["images"]:
        yield (
            "preprocessing {rows} x {columns} to {size}, {filter}: {ours_ms:.1f} ms an image, {times_floor:.2f}x the "
            "floor of {floor_ms:.1f} ms ({workers} processes); the plain loop, one process: {plain_ms:.1f} ms"
        ).format(**part)


def comparison(part: dict[str, Any], unit: str) -> Iterator[str]:
    """The rows of a part; unit: the array whose size memory is measured by."""
    yield f"  {'':32}{'forward':>10}{'+ backward':>12}{'slower':>9}{'peak memory':>14}"
    for r in part["rows"]:
        yield (
            f"  {r['name']:32}{r['forward_ms']:>7.1f} ms{r['forward_backward_ms']:>9.1f} ms{r['times_slower']:>8.1f}x"
            f"{r['peak_memory_in_input']:>9.1f} x {unit}"
        )
    floors = part["floor"]
    yield f"  floor: exponentials {floors['exponentials_ms']:.2f} ms, bytes {floors['bytes_ms']:.2f} ms"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"{', '.join(PARTS)}; all of them")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batch", type=int, default=4, help="of the scans")
    parser.add_argument("--channels", type=int, default=192)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--sides", type=int, nargs="+", default=list(CHANNELS), help="SS2D's tokens a side")
    parser.add_argument("--images", type=int, default=1, help="in a batch of SS2D")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="SS2D's autocast")
    parser.add_argument("--study", default="config/demo.yaml", help="whose models and recipe the steps have")
    parser.add_argument("--size", type=int, default=512, help="pixels of the steps' images")
    parser.add_argument("--exams", type=int, default=1, help="in a batch of the steps")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, help="of the epochs")
    parser.add_argument("--epoch-size", type=int, help="pixels of the epochs' images; the study's own")
    parser.add_argument("--epoch-exams", type=int, default=48, help="in an epoch")
    parser.add_argument("--compile", action="store_true", help="epochs with compiled encoders too: minutes a system")
    parser.add_argument("--workers", type=int, default=0, help="processes of the naive trainer's DataLoader")
    parser.add_argument("--files", type=int, default=64, help="of preprocessing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--readme", action="store_true", help="measure nothing; write README's figures from the record")
    a = parser.parse_args(arguments)
    if a.readme:
        return rewrite(project_root() / "README.md", records()["cpu"])
    if unknown := set(a.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; accepted are {', '.join(PARTS)}")
    torch.set_num_threads(a.threads)
    device = torch.device(a.device)
    record: dict[str, Any] = {"environment": environment(device_name(device), torch.get_num_threads())}
    record["environment"]["cpu"] = cpu_name()
    record |= {"scans": [], "ss2d": [], "steps": [], "epochs": [], "images": []}
    if "scans" in a.parts:
        record["scans"] = compare_scans(a.lengths, a.batch, a.channels, a.states, a.rounds, device)
    if "ss2d" in a.parts:
        for side in a.sides:
            channels = CHANNELS.get(side, 64)
            found = compare_ss2d(channels, side, a.rounds, device, batch=a.images, dtype=getattr(torch, a.dtype))
            record["ss2d"].append({"channels": channels, "side": side, "batch": a.images, "dtype": a.dtype} | found)
    if "steps" in a.parts:
        record["steps"] = steps(load_study(a.study), a.size, a.exams, a.rounds, device)
    if "epochs" in a.parts:
        study = load_study(a.study)
        size = a.epoch_size or study.images.size
        record["epochs"] = [epochs(study, size, a.epoch_exams, a.rounds, device, a.workers, a.systems, a.compile)]
    if "images" in a.parts:
        record["images"] = [compare_preprocessing(a.files, 512, a.threads, a.rounds)]
    print("\n".join(tables(record)))
    if a.json:
        # a record is of one run; what another command has added, with its own environment, stays
        write_json(a.json, (read_json(a.json) if a.json.is_file() else {}) | record)


def cpu_name() -> str:
    """The processor's model, by Linux's own list or by what Python knows."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()
