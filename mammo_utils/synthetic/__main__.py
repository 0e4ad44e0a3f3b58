"""Draws a synthetic release: python -m mammo_utils.synthetic FOLDER."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from mammo_utils.progress import Progress
from mammo_utils.synthetic.cases import VISIBLE
from mammo_utils.synthetic.release import write_release


def main(arguments: list[str] | None = None) -> int:
    """Draw a release with the settings of the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mammo_utils.synthetic",
        description="Draw a synthetic mammography release in the format of CMMD and TOMPEI-CMMD.",
    )
    parser.add_argument("folder", type=Path, help="a new or an empty folder")
    parser.add_argument("--n-exams", type=int, default=300)
    parser.add_argument("--rows", type=int, default=288, help="pixels; the real detector has 2294")
    parser.add_argument("--columns", type=int, default=240, help="pixels; the real detector has 1914")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contrast", type=float, default=1.0, help="of the findings; 0 makes them invisible")
    parser.add_argument("--noise", type=float, default=1.0, help="of the pixels")
    parser.add_argument(
        "--difficulty",
        type=float,
        default=0.0,
        help="how faint findings are, 0 (plain) to 1 (half of them are invisible)",
    )
    parser.add_argument("--visible", choices=VISIBLE, default="both", help="views, or breasts, that show a cancer")
    parser.add_argument("--bilateral", type=float, help="share of four-view exams with cancer in both breasts")
    parser.add_argument("--null", action="store_true", help="draw findings that are independent of the labels")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per available CPU")
    settings = vars(parser.parse_args(arguments))
    try:
        folder = write_release(**settings, progress=Progress("drawing", "exams"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"{folder} holds a synthetic release of {settings['n_exams']} exams.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
