"""README's figures of speed, written from the record that comes with the study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mammo_utils.io import write_text

START, END = "<!-- speed: python -m benchmarks --readme -->", "<!-- /speed -->"
NAMES = {
    "backend cpu": "this study's CPU scan",
    "plain loop over unbound steps": "a plain loop in torch",
    "parallel scan as in mamba.py": "a parallel scan in torch, as in mamba.py",
}


def speed(record: dict[str, Any]) -> list[str]:
    """The lines between README's marks: the scans of a record as a table, and what preprocessing takes."""
    facts, parts = record["environment"], record["scans"]
    where = f"{facts['threads']} threads of {facts.get('cpu', 'a CPU whose model was not recorded')}"
    sizes = "batch {batch}, {channels} channels, {states} states".format(**parts[0])
    lines = [
        f"{where}, float32, forward and backward, {sizes}",
        f"(`records/cpu.json`, {facts['written'][:10]}):",
        "",
        f"| | {' | '.join('L = {length}'.format(**part) for part in parts)} | peak memory, of u |",
        "|---" * (len(parts) + 2) + "|",
    ]
    for name, words in NAMES.items():
        rows = [row for part in parts for row in part["rows"] if row["name"] == name]
        times = " | ".join(f"{row['forward_backward_ms']:,.0f} ms" for row in rows)
        lines.append(f"| {words} | {times} | {max(row['peak_memory_in_input'] for row in rows):.1f} |")
    floors = " | ".join(f"{part['floor']['exponentials_ms']:,.0f} ms" for part in parts)
    lines.append(f"| the floor: its exponentials | {floors} | |")
    for found in record["images"]:
        lines += [
            "",
            "Preprocessing from {rows} × {columns} to {size} × {size} takes {ours_ms:.1f} ms an image in {workers} "
            "processes, {times_floor:.1f} times the".format(**found),
            "floor (reading the bytes and the same filter of Pillow); the plain loop in one process {plain_ms:.0f} ms."
            "".format(**found),
        ]
    return lines


def rewrite(readme: Path, record: dict[str, Any]) -> None:
    """Put :func:`speed` of the record between the marks of README."""
    text = "\n".join([START, *speed(record), END])
    old = readme.read_text(encoding="utf-8")
    write_text(readme, re.sub(f"{START}.*{END}", lambda _: text, old, flags=re.S))
