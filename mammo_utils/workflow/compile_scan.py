"""Compile the CPU scan, once for all steps that use it: numba keeps it on disk."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mammo_utils.io import write_json
from mammo_utils.progress import duration


def compile_scan() -> None:
    """Run the scan's forward and backward pass on a few numbers."""
    import torch  # slow to import

    from mammo_utils.models.selective_scan import selective_scan

    numbers = torch.ones(1, 1, 4, requires_grad=True)
    one = torch.ones(1, 1)
    selective_scan(numbers, numbers, -one, one, one, backend="cpu").sum().backward()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="+", help="ignored: the scan is the same for all studies")
    parser.add_argument("--outcome", type=Path, required=True, help="file for the outcome")
    options = parser.parse_args()
    print("compiling the CPU scan, unless this machine has done so before", flush=True)
    start = time.monotonic()
    compile_scan()
    print(f"the CPU scan is compiled ({duration(time.monotonic() - start)})", flush=True)
    write_json(options.outcome, {"outcome": "done", "reason": ""})


if __name__ == "__main__":
    main()
