"""Execute one notebook of a study headless: ``python -m mammo_utils.workflow.run_notebook``.

The outcome is a small file that is written last and atomically. It alone shows that a notebook is done: if a kernel is
killed, papermill's executed copy still marks every cell as completed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from zmq import ZMQError

from mammo_utils.io import folder_lock, project_root, write_json
from mammo_utils.progress import duration
from mammo_utils.study import load_study
from mammo_utils.workflow.gpus import take_gpus
from mammo_utils.workflow.status import describe_runs
from mammo_utils.workflow.study_state import drop_figures


def execute(name: str, folder: Path, parameters: dict[str, Any], copy: str = "") -> dict[str, Any]:
    """Execute a notebook and return its outcome.

    Args:
        name: Name of the notebook, such as "04_train".
        folder: The study's folder; the executed copy goes to its subfolder ``notebooks``.
        parameters: Values for the parameters cell.
        copy: Name of the executed copy, if not that of the notebook.

    Returns:
        {"outcome": "done" or "failed", "reason": "" or one line, "seconds": float}. An unknown parameter ends the
        process with one sentence before a kernel starts.
    """
    target = folder / "notebooks" / f"{copy or name}.ipynb"
    partial = target.with_name(f".{target.name}")
    with folder_lock(folder / "locks" / target.stem):
        target.parent.mkdir(parents=True, exist_ok=True)
        drop_figures(folder / "figures", name)
        lines = PrefixedStream(name[:2])
        start = time.monotonic()
        reason = ""
        try:
            papermill.execute_notebook(
                project_root() / "notebooks" / f"{name}.ipynb",
                partial,
                parameters,
                engine_name="study",
                kernel_name="python3",
                progress_bar=False,
                start_timeout=300,  # seconds; many kernels may start at once
                stdout_file=lines,
                cwd=project_root(),
            )
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {' '.join(str(error.evalue).split())}"
        except DeadKernelError:
            reason = "its kernel died, most often because memory ran out"
        except (RuntimeError, OSError, ZMQError) as error:  # such as a kernel that does not start
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        lines.close()
        if partial.exists():
            os.replace(partial, target)
    return {"outcome": "failed" if reason else "done", "reason": reason, "seconds": time.monotonic() - start}


class PrefixedStream:
    """Prints a notebook's output in whole lines behind its number, because several notebooks print at once."""

    def __init__(self, number: str) -> None:
        self.number, self.rest = number, ""

    def write(self, text: str) -> None:
        """Print the lines that `text` completes."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if line.strip():
                print(f"{self.number}  {line}", flush=True)

    def flush(self) -> None:
        """Do nothing: each line was flushed when it was complete."""

    def close(self) -> None:
        """Print the last line if it is incomplete."""
        self.write("\n")


def main() -> None:
    """Run the command line."""
    # the kernel is this interpreter, whatever kernels are installed elsewhere
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.pop("JUPYTER_PATH", None)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # the engine checks the parameters
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", help="such as 04_train")
    parser.add_argument("folder", type=Path, help="the study's folder of results")
    parser.add_argument("outcome", type=Path, help="file for the outcome")
    parser.add_argument("--parameters", default="{}", help="the notebook's parameters as JSON")
    parser.add_argument("--more", default="{}", help="more parameters as JSON")
    parser.add_argument("--copy", default="", help="name of the executed copy, if not the notebook's")
    parser.add_argument("--soft", action="store_true", help="write a failure into the outcome and exit without error")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that it needs; the least used ones are taken")
    parser.add_argument("--at-once", type=int, default=0, help="a run's training: runs that are trained at once")
    options = parser.parse_args()
    title = options.copy or options.notebook
    parameters = json.loads(options.parameters) | json.loads(options.more)

    def runs() -> str:
        study = load_study(parameters["study"], parameters["settings"]) if options.at_once else None
        return f" ({describe_runs(study, options.at_once)})" if study else ""

    print(f"{title}: started{runs()}", flush=True)
    try:
        with take_gpus(options.gpus, options.folder / "locks" / "gpus"):
            outcome = execute(options.notebook, options.folder, parameters, options.copy)
    except KeyboardInterrupt:
        print(f"{title}: stopped", flush=True)
        sys.exit(128 + signal.SIGINT)
    if options.soft or not outcome["reason"]:
        write_json(options.outcome, outcome)
    reason = f": {outcome['reason']}" if outcome["reason"] else ""
    print(f"{title}: {outcome['outcome']} in {duration(outcome['seconds'])}{reason}{runs()}", flush=True)
    if outcome["reason"] and not options.soft:
        sys.exit(1)


if __name__ == "__main__":
    main()
