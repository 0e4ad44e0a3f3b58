"""Benchmarks of speed and memory, `python -m benchmarks`, and the records of them that come with the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mammo_utils.io import read_json


def load_records() -> dict[str, dict[str, Any]]:
    """Read the stored records: file name without suffix -> what `--json` wrote on the machine in its "environment"."""
    return {path.stem: read_json(path) for path in sorted(Path(__file__).with_name("records").glob("*.json"))}
