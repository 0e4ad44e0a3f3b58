"""A papermill engine for the study's notebooks: ``papermill --engine study notebooks/04_train.ipynb out.ipynb``.

Before a kernel starts it checks the parameters, for papermill itself only warns of an unknown one. While the
notebook runs it watches the process that started the study: when that is gone, so is the kernel.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from papermill.engines import NBClientEngine
from traitlets.config import Config

from mammo_utils.config import NOTEBOOKS, ParameterError, check_parameters
from mammo_utils.workflow.state import STARTER, orphaned

INLINE = "module://matplotlib_inline.backend_inline"  # pictures go into the executed copy, whatever the shell says


class StudyEngine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        """Check, watch, and run the notebook as papermill does. Ends the command with a sentence where a
        parameter is unknown or ill-typed."""
        facts = nb_man.nb.metadata.papermill
        name = Path(facts.get("input_path") or "").stem
        if name in NOTEBOOKS:
            try:
                check_parameters(name, dict(facts.get("parameters") or {}))
            except ParameterError as error:
                sys.exit(str(error))
        watch()
        os.environ["MPLBACKEND"] = INLINE
        # sockets in a folder of this kernel's own: no other user can read what the kernel says
        with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
            config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/socket"}})
            # a kernel is interrupted before it is shut down and would print that as an error
            kwargs |= {"coalesce_streams": True, "config": config, "extra_arguments": ["--log-level=CRITICAL"]}
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


def watch(interval: float = 0.5) -> None:
    """End this process when the one named in STARTER or our parent is gone; the kernel ends itself when its parent
    does."""
    parent = os.getppid()
    if not os.environ.get(STARTER):
        return

    def look() -> None:
        while not orphaned(parent):
            time.sleep(interval)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
