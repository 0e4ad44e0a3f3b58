"""Run one notebook's command; if its process is killed, write the failed outcome that it could not write itself.

python -m mammo_utils.workflow.supervise OUTCOME -- COMMAND ...

Only a signal to the command alone is a failure. A signal to the whole study (Ctrl-C, a scheduler's SIGTERM, SIGKILL of
the process that started it) ends this process as well: such a run is stopped and continues later.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from mammo_utils.io import exit_with_parent
from mammo_utils.workflow.study_state import mark_failed


def run_supervised(outcome: Path, command: list[str], grace: float = 1.0) -> int:
    """Run a command and return its exit status. If it was killed, record that as its outcome and return 0.

    Args:
        outcome: File for the outcome.
        command: The command's words.
        grace: Seconds to wait before a kill is recorded: a signal to the whole study may reach this process later.
    """
    exit_with_parent()
    child = subprocess.Popen(command)
    try:
        status = child.wait()
    except KeyboardInterrupt:  # the command got Ctrl-C as well and shuts down its kernel
        child.wait()
        return 128 + signal.SIGINT
    if status >= 0 or status == -signal.SIGINT:
        return abs(status)
    time.sleep(grace)
    hint = {-signal.SIGKILL: ", as when memory runs out", -signal.SIGTERM: ", as at a time limit"}.get(status, "")
    reason = f"its process was killed by signal {-status} ({signal.Signals(-status).name}{hint})"
    mark_failed(outcome, reason)
    print(f"{outcome.stem}: {reason}", flush=True)
    return 0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outcome", type=Path, help="file in which the command records its outcome")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    sys.exit(run_supervised(options.outcome, options.command))


if __name__ == "__main__":
    main()
