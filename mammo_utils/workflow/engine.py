"""A papermill engine for the study's notebooks: ``papermill --engine study notebooks/04_train.ipynb out.ipynb``.

It is a module of its own because papermill imports it as a plugin while it is itself being imported.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import zmq
from papermill.engines import NBClientEngine
from traitlets.config import Config

from mammo_utils.config import ParameterError
from mammo_utils.io import exit_with_parent
from mammo_utils.parameters import NOTEBOOKS, check_parameters

INLINE = "module://matplotlib_inline.backend_inline"  # figures go into the executed copy, whatever the shell has set


class StudyEngine(NBClientEngine):
    """A papermill engine that checks parameters before a kernel starts and leaves no kernel behind."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        """Execute as papermill does, but end with one sentence if a parameter is unknown or ill-typed.

        papermill itself only warns of an unknown parameter.
        """
        facts = nb_man.nb.metadata.papermill
        name = Path(facts.get("input_path") or "").stem
        if name in NOTEBOOKS:
            try:
                check_parameters(name, dict(facts.get("parameters") or {}))
            except ParameterError as error:
                sys.exit(str(error))
        exit_with_parent()  # the kernel does the same when this process ends
        os.environ["MPLBACKEND"] = INLINE
        # the kernel's sockets lie in a private folder, where no other user can read its messages
        with tempfile.TemporaryDirectory(prefix="kernel-", dir=socket_parent()) as folder:
            config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/socket"}})
            # a kernel is interrupted before it is shut down and would log that as an error
            kwargs |= {"coalesce_streams": True, "config": config, "extra_arguments": ["--log-level=CRITICAL"]}
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


def socket_parent() -> str:
    """The folder for temporary files, or another one if it is too long for the path of a socket.

    A socket's path has at most 107 bytes on Linux and 103 on macOS, which a job's scratch folder may exceed. Ends the
    process with one sentence if no folder fits.
    """
    longest = zmq.IPC_PATH_MAX_LEN - len("/kernel-12345678/socket-1")
    parents = (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp")
    for parent in parents:
        if len(os.fsencode(parent)) <= longest and os.access(parent, os.W_OK | os.X_OK):
            return parent
    sys.exit(
        f"The folder for temporary files, {parents[0]}, is too long for the sockets of a notebook and /tmp cannot be "
        f"written; set TMPDIR to a folder whose path has at most {longest} bytes."
    )
