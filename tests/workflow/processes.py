"""Processes that a study has started, found from outside."""

import subprocess
import time
from pathlib import Path


def gone(process, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end and running(process):
        time.sleep(0.1)
    return not running(process)


def running(process):
    """Alive and no zombie that only waits for its parent to look."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


def parent_of(process):
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(process)], capture_output=True, text=True).stdout or 0)


def processes_of(mark):
    """Numbers of the live processes whose environment or command holds `mark`, such as a project's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if str(mark).encode() in text and running(int(folder.name)):
            found.append(int(folder.name))
    return found
