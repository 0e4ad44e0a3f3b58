"""A study of hybrid CNN-VSSM models for multi-view, multi-task mammography.

`docs/code.md` lists every module and the order in which to read the paper's path.
"""

import getpass
import os

__version__ = "0.1.0"

try:
    getpass.getuser()
except (KeyError, OSError):  # a user without an entry in passwd, as in a container: torch asks for a name when imported
    os.environ["USER"] = f"user{os.getuid()}"
