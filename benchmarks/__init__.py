"""What is fast and where time goes: ``python -m benchmarks``; the records that come with the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mammo_utils.io import read_json


def records() -> dict[str, dict[str, Any]]:
    """Name -> record, as ``--json`` wrote it on the machine that its "environment" describes."""
    return {path.stem: read_json(path) for path in sorted(Path(__file__).with_name("records").glob("*.json"))}
