"""Progress lines of long work, readable in JupyterLab, in a terminal and in a headless log."""

from __future__ import annotations

import time


class Progress:
    """Prints a line at the start, after every tenth and at the end of some work; call it with (done, total).

    It is no progress bar, because a bar redrawn in place becomes thousands of lines in a log and a dead widget in a
    saved notebook.
    """

    def __init__(self, title: str, unit: str = "") -> None:
        self.title, self.unit = title, unit
        self.start: float | None = None
        self.tenth = -1

    def __call__(self, done: int, total: int) -> None:
        """Print a line if another tenth is done."""
        now = time.monotonic()
        self.start = self.start if self.start is not None else now
        tenth = 10 * done // total if total else 10
        if tenth == self.tenth:
            return
        self.tenth = tenth
        spent = now - self.start
        left = f", {duration(spent * (total - done) / done)} left" if 0 < done < total else ""
        print(
            f"{self.title}: {done} of {total} {self.unit}".rstrip() + f" ({duration(spent)}{left})",
            flush=True,
        )


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 2:05 min, 1:02 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = seconds // 60, seconds // 3600
    return f"{minutes}:{seconds % 60:02d} min" if not hours else f"{hours}:{minutes % 60:02d} h"
