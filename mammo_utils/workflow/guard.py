"""Runs one notebook's command and, where its process is killed, says so in the outcome that it could not leave itself.

python -m mammo_utils.workflow.run_notebook OUTCOME [--failure FILE] -- COMMAND ...

Only what ended the command alone is a failure. What ended the whole study (Ctrl-C, a scheduler's SIGTERM, SIGKILL of
the process that started it) ends this process too, or is seen by it: such a run is stopped and goes on later.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mammo_utils.workflow.state import mark_failed, orphaned


def run_supervised(outcome: Path, command: list[str], failure: Path | None = None, interval: float = 0.5) -> int:
    """Wait for the command; returns its exit status, 0 where it was killed and its outcome says so."""
    parent = os.getppid()
    child = subprocess.Popen(command)
    while True:
        try:
            status = child.wait(interval)
            break
        except subprocess.TimeoutExpired:
            if orphaned(parent):
                return 1  # the command watches this process, as its kernel watches the command
        except KeyboardInterrupt:  # came to the command as well, which shuts down its kernel
            child.wait()
            return 128 + signal.SIGINT
    if status >= 0 or status == -signal.SIGINT:
        return abs(status)
    time.sleep(2 * interval)  # a signal to everything comes here as well, perhaps a moment later
    if orphaned(parent):
        return 1
    why = {-signal.SIGKILL: ", as where the memory is not enough", -signal.SIGTERM: ", as by a time limit"}
    reason = f"its process was ended by signal {-status} ({signal.Signals(-status).name}{why.get(status, '')})"
    mark_failed(outcome, reason, failure)
    print(f"{outcome.stem}: {reason}", flush=True)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outcome", type=Path, help="file that the command leaves its outcome in")
    parser.add_argument("--failure", type=Path, help="a further file for the reason of a failure")
    parser.add_argument("command", nargs="+", help="behind --")
    options = parser.parse_args()
    sys.exit(run_supervised(options.outcome, options.command, options.failure))


if __name__ == "__main__":
    main()
