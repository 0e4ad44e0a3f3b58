"""Make sure that the study's data exist: draw a synthetic release, look for a real one.

python -m mammo_utils.workflow.cohort config/demo.yaml [settings ...] [--outcome FILE]
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from mammo_utils.data.cohort import DataError
from mammo_utils.io import write_json
from mammo_utils.progress import Progress
from mammo_utils.study import Study, load_study
from mammo_utils.synthetic.release import write_release


def ensure_data(study: Study) -> None:
    """Draw the synthetic release if it does not exist. Raises DataError if real data are missing."""
    if study.data.source == "synthetic":
        settings = study.data.synthetic.model_dump()
        write_release(study.data_folder, **settings, progress=Progress("synthetic cohort", "exams"))
    elif not study.data_folder.is_dir() or not any(study.data_folder.iterdir()):
        raise DataError(
            f"The data folder {study.data.folder} is missing or empty; docs/data.md describes what belongs in it."
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="the study file")
    parser.add_argument("settings", nargs="*", help="settings that replace the file's, such as data.synthetic.seed=1")
    parser.add_argument("--outcome", type=Path, help="file for the outcome")
    options = parser.parse_args()
    try:
        ensure_data(load_study(options.study, options.settings))
    except ValueError as error:  # the project's own errors are one sentence each
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("synthetic cohort: stopped", flush=True)
        sys.exit(128 + signal.SIGINT)
    if options.outcome:
        write_json(options.outcome, {"outcome": "done", "reason": ""})


if __name__ == "__main__":
    main()
