"""A record as tables to read, and as the table in docs/speed.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import fill, indent
from typing import Any

import pandas as pd

from mammo_utils.workflow.publish import replace_between

START, END = "<!-- speed: python -m benchmarks --docs -->", "<!-- /speed -->"
PAGE_SCANS = {
    "backend cpu": "this study's CPU scan",
    "plain loop over unbound steps": "a plain loop in torch",
    "parallel scan as in mamba.py": "a parallel scan in torch, as in mamba.py",
}
TIMES = {"forward_ms": "forward, ms", "forward_backward_ms": "+ backward, ms", "times_slower": "times the first"}
PREPROCESSING = """Preprocessing from {rows} × {columns} to {size} × {size} takes {ours_ms:.1f} ms an image in {workers}
processes, {times_floor:.1f} times the floor of {floor_ms:.1f} ms, which reads the bytes and applies the same filter:
{filter}. The plain loop in one process takes {plain_ms:.0f} ms."""


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield the record as blocks of text."""
    for part in record.get("scans", []):
        yield "selective scan, B={batch} D={channels} N={states} L={length}".format(**part)
        yield _table(part["rows"], "name", TIMES | {"peak_memory_in_input": "peak memory / u"})
        yield _describe_floor(part)
    for part in record.get("ss2d", []):
        yield "SS2D of {channels} channels, {side} x {side} tokens, {batch} image(s), {dtype}".format(**part)
        yield _table(part["rows"], "name", TIMES | {"peak_memory_in_input": "peak memory / image"})
        bare, own, *others = part["rows"]
        for one, other in [*((row, own) for row in others[-1:]), (own, bare)]:
            ratio = one["forward_backward_ms"] / other["forward_backward_ms"]
            yield f"  {one['name']}: {ratio:.2f} times {other['name']}"
        yield _describe_floor(part)
    for part in record.get("steps", []):
        yield (
            "{system}: a training step of {batch} exam(s) at {size} px, {step_ms:.0f} ms, {exams_per_second:.2f} "
            "exams/s, {peak_memory_mb:.0f} MB above the weights"
        ).format(**part)
        yield _table(part["parts"], "part", {"forward_ms": "forward, ms", "backward_ms": "backward, ms"})
    for part in record.get("epochs", []):
        sizes = "epochs of {exams} exams at {size} px in batches of {batch}".format(**part["systems"][0])
        yield f"{sizes}, the naive trainer's files of {part['pictures'][0]} x {part['pictures'][1]}"
        columns = {"exams_per_second": "exams/s", "times_naive": "times naive", "peak_memory_mb": "peak memory, MB"}
        for found in part["systems"]:
            yield f"  {found['system']}\n" + _table(found["rows"] + found["alternatives"], "name", columns)
        exact, fast = part["times_naive"]
        yield f"  an epoch of each system: {exact:.1f} times the naive rate in float32, {fast:.1f} times with bfloat16"
        if part["paper_hours"] is not None:
            yield f"  54 runs of 100 epochs of 1,088 exams at this size: {part['paper_hours']:.1f} hours"
    for part in record.get("batch_norm", []):
        yield f"{part['run']}: mean validation AUC of each epoch by the statistics of batch norm"
        frame = pd.DataFrame(part["auc"]).T
        frame.columns = [f"{epoch + 1}" for epoch in frame]
        yield indent(frame.assign(fall=part["falls"]).to_string(float_format="{:.3f}".format), "  ")
    yield from (PREPROCESSING.format(**part) for part in record.get("images", []))


def _table(rows: list[dict[str, Any]], index: str, columns: dict[str, str]) -> str:
    frame = pd.DataFrame(rows).set_index(index).rename_axis(None)[list(columns)].rename(columns=columns)
    return indent(frame.astype(float).to_string(float_format="{:,.1f}".format, na_rep=""), "  ")


def _describe_floor(part: dict[str, Any]) -> str:
    return "  floor: exponentials {exponentials_ms:.2f} ms, bytes {bytes_ms:.2f} ms".format(**part["floor"])


def describe_for_docs(record: dict[str, Any]) -> str:
    """The text of docs/speed.md between its marks: the scans as a Markdown table, and the preprocessing."""
    facts, parts = record["environment"], record["scans"]
    lines = [
        f"{facts['threads']} threads of {facts['cpu']}, float32, forward and backward, "
        "batch {batch}, {channels} channels, {states} states".format(**parts[0]),
        f"(`benchmarks/records/cpu.json`, {facts['written'][:10]}):",
        "",
        f"| | {' | '.join('L = {length}'.format(**part) for part in parts)} | peak memory, in units of u |",
        "|---" * (len(parts) + 2) + "|",
    ]
    for name, title in PAGE_SCANS.items():
        rows = [row for part in parts for row in part["rows"] if row["name"] == name]
        times = " | ".join(f"{row['forward_backward_ms']:,.0f} ms" for row in rows)
        lines.append(f"| {title} | {times} | {max(row['peak_memory_in_input'] for row in rows):.1f} |")
    floors = " | ".join(f"{part['floor']['exponentials_ms']:,.0f} ms" for part in parts)
    lines.append(f"| the floor: its exponentials | {floors} | |")
    for part in record["images"]:
        lines += ["", fill(PREPROCESSING.format(**part), 120)]
    return "\n".join(lines)


def update_docs(page: Path, record: dict[str, Any]) -> None:
    """Replace the text between the page's marks by that of `record`."""
    replace_between(page, START, END, describe_for_docs(record))
