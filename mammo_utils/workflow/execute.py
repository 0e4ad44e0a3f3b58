"""Runs one notebook of a study headless and leaves its outcome: ``python -m mammo_utils.workflow.run_notebook``.

The outcome is a small file, written last and whole. The executed copy is for reading: when a kernel is killed,
papermill's copy says that every cell completed, so it is never the sign that a notebook is done.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from mammo_utils.config import ParameterError, check_parameters
from mammo_utils.io import folder_lock, project_root, write_json
from mammo_utils.progress import duration
from mammo_utils.workflow.gpus import take_gpus
from mammo_utils.workflow.state import drop_figures


def execute(name: str, folder: Path, parameters: dict[str, Any], copy: str = "") -> dict[str, Any]:
    """Run notebook `name` and return its outcome: {"outcome": "done"} or {"outcome": "failed", "reason": ...}.

    The executed copy goes to ``folder/notebooks/<copy or name>.ipynb``. Raises ParameterError before a kernel
    starts.
    """
    check_parameters(name, parameters)
    target = folder / "notebooks" / f"{copy or name}.ipynb"
    partial = target.with_name(f".{target.name}")
    with folder_lock(folder / "locks" / target.stem):
        target.parent.mkdir(parents=True, exist_ok=True)
        drop_figures(folder / "figures", name)
        voice = PrefixedStream(name[:2])
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
                stdout_file=voice,
                cwd=project_root(),
            )
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {' '.join(str(error.evalue).split())}"
        except DeadKernelError:
            reason = "its kernel died; most often the memory was not enough"
        except (RuntimeError, OSError) as error:  # such as a kernel that does not come up
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        voice.close()
        if partial.exists():
            os.replace(partial, target)
        outcome = {"outcome": "failed" if reason else "done", "reason": reason, "seconds": time.monotonic() - start}
    return outcome


class PrefixedStream:
    """What a notebook prints, line by line behind its number: several notebooks speak at once."""

    def __init__(self, number: str) -> None:
        self.number, self.rest = number, ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if line.strip():
                print(f"{self.number}  {line}", flush=True)

    def flush(self) -> None:
        """Each line went out when it was whole."""

    def close(self) -> None:
        self.write("\n")


def main() -> None:
    # the kernel is this interpreter, whatever kernels are installed elsewhere
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.pop("JUPYTER_PATH", None)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # the engine checks the parameters
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", help="such as 04_train")
    parser.add_argument("folder", type=Path, help="the study's folder of results")
    parser.add_argument("outcome", type=Path, help="file to leave the outcome in")
    parser.add_argument("--parameters", default="{}", help="the notebook's parameters as JSON")
    parser.add_argument("--more", default="{}", help="more parameters as JSON")
    parser.add_argument("--copy", default="", help="name of the executed copy, where it is not the notebook's")
    parser.add_argument("--soft", action="store_true", help="a failure is written into the outcome and is no error")
    parser.add_argument("--gpus", type=int, default=0, help="how many it needs; those least in use are taken")
    parser.add_argument("--failure", type=Path, help="file to leave the reason in where the notebook fails")
    options = parser.parse_args()
    title = options.copy or options.notebook
    print(f"{title}: started", flush=True)
    try:
        parameters = json.loads(options.parameters) | json.loads(options.more)
        with take_gpus(options.gpus, options.folder / "locks" / "gpus"):
            outcome = execute(options.notebook, options.folder, parameters, options.copy)
    except ParameterError as error:
        sys.exit(str(error))
    spent = duration(outcome["seconds"])
    print(
        f"{title}: {outcome['outcome']} in {spent}{': ' + outcome['reason'] if outcome['reason'] else ''}", flush=True
    )
    if outcome["reason"] and options.failure:
        write_json(options.failure, outcome)
    if outcome["reason"] and not options.soft:
        sys.exit(1)
    write_json(options.outcome, outcome)


if __name__ == "__main__":
    main()
