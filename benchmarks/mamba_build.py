"""Build the CUDA extension of mamba-ssm for one card."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from mammo_utils.io import available_cpus

KERNEL = "kernel"  # subfolder with the built extension of mamba-ssm, which later steps can import
FLAGS = re.compile(r'cc_flag\.append\("-gencode"\)\s*cc_flag\.append\("arch=compute_(\w+),code=\w+"\)')


def build_kernel(source: Path, folder: Path, architecture: str) -> Path:
    """Build mamba-ssm's extension and copy it to the folder's subfolder KERNEL.

    Args:
        source: Its source distribution, a .tar.gz file.
        folder: Where to unpack and to build.
        architecture: Compute capability without its point, such as "90".

    Returns:
        The extension's file.

    Raises:
        ValueError: The source has no setup.py, or see `keep_architecture`.
        CalledProcessError: The build failed.
        FileNotFoundError: The build left no extension.
    """
    shutil.rmtree(folder / "mamba", ignore_errors=True)
    with tarfile.open(source) as archive:
        # Python before 3.11.4 has no filters; this source is trusted, its setup.py is run below
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder / "mamba")
    setup = next((folder / "mamba").glob("*/setup.py"), None)
    if setup is None:
        raise ValueError(f"{source} holds no */setup.py; name the source distribution of mamba-ssm.")
    text = keep_architecture(setup.read_text(encoding="utf-8"), architecture)
    if importlib.util.find_spec("wheel") is None:  # newer setuptools have the command themselves
        text = text.replace("from wheel.bdist_wheel import", "from setuptools.command.bdist_wheel import")
    setup.write_text(text, encoding="utf-8")
    variables = {"MAMBA_FORCE_BUILD": "TRUE", "MAMBA_KEEP_CUDA_BUILD": "TRUE", "MAX_JOBS": str(available_cpus())}
    ninja = [str(Path(path) / "bin") for path in sys.path if (Path(path) / "bin" / "ninja").is_file()]
    variables["PATH"] = os.pathsep.join([os.environ["PATH"], *ninja])  # without ninja torch compiles file by file
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=setup.parent, env=os.environ | variables, check=True)
    built = next(setup.parent.glob("selective_scan_cuda*.so"), None)
    if built is None:
        raise FileNotFoundError("The build of mamba-ssm left no selective_scan_cuda*.so; see the step's log.")
    (folder / KERNEL).mkdir(exist_ok=True)
    kept = Path(shutil.copy2(built, folder / KERNEL))
    shutil.rmtree(folder / "mamba")  # its objects are large
    return kept


def keep_architecture(setup: str, architecture: str) -> str:
    """Return mamba-ssm's setup.py with `pass` in place of each -gencode pair but that of the architecture.

    Raises ValueError if that pair is not there exactly once or if others are left.
    """
    found = [match[1] for match in FLAGS.finditer(setup)]
    text = FLAGS.sub(lambda match: match[0] if match[1] == architecture else "pass", setup)
    if text.count("-gencode") != 1 or found.count(architecture) != 1:
        raise ValueError(f"setup.py of mamba-ssm cannot be cut down to compute_{architecture}; it names {found}.")
    return text
