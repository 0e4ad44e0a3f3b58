"""Files written whole or not at all, and where each result comes from."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
VERSIONED = """torch torchvision mamba-ssm triton numba numpy scipy pandas pyarrow scikit-learn pydicom pillow
safetensors""".split()
TRAINING_CODE = ("metrics.py", "data", "images", "batches", "models", "training")  # what can change a run's numbers


def project_root() -> Path:
    """The folder against which a study's paths are read.

    It is the environment variable ``MAMMO_PROJECT``, else the checkout that this package is installed from,
    else the current folder.
    """
    if os.environ.get("MAMMO_PROJECT"):
        return Path(os.environ["MAMMO_PROJECT"]).resolve()
    checkout = PACKAGE.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def shown(path: Path) -> str:
    """A path as messages name it: relative to the project where it lies inside."""
    path = Path(path)
    return path.relative_to(project_root()).as_posix() if path.is_relative_to(project_root()) else str(path)


# --- whole or not at all --------------------------------------------------------------------------------


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes its place at once, at the end.

    A reader sees the old file or the new one. When the block raises, the old file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write `values` as JSON; NaN becomes null, for JSON has no other word for it."""
    write_text(path, json.dumps(_plain(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError naming the file if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{shown(path)} is not readable as JSON ({error}); delete it to have it made again."
        ) from error


def _plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if hasattr(values, "item") and not isinstance(values, str | bytes):
        values = values.item()  # a numpy scalar
    if isinstance(values, float) and values != values:
        return None
    if isinstance(values, Path):
        return values.as_posix()
    return values


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a second one waits. The system lets go when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that works in {folder.name}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- where a result comes from --------------------------------------------------------------------------


def hash_of(values: Any) -> str:
    """SHA-256 of JSON-like values, whatever the order of their keys."""
    text = json.dumps(_plain(values), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_hash(*parts: str) -> str:
    """SHA-256 of the package's code, or of its named parts (folders or files), blind to comments, docstrings and
    layout."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = {file: file.relative_to(PACKAGE) for file in files}
    kept = [f for f, name in names.items() if not parts or {name.parts[0], name.as_posix()} & set(parts)]
    return hash_of([[file.relative_to(PACKAGE).as_posix(), source_hash(file.read_text("utf-8"))] for file in kept])


def loaded_code() -> list[str]:
    """The package's files that this process has imported, as parts for :func:`code_hash`."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE.name]
    files = {Path(module.__file__) for module in modules if getattr(module, "__file__", None)}
    return sorted(file.relative_to(PACKAGE).as_posix() for file in files if file.is_relative_to(PACKAGE))


def source_hash(source: str) -> str:
    """SHA-256 of what Python source does: its syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                body[0].value.value = ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def commit() -> str:
    """The checkout's commit, "+changes" where tracked files differ from it, "" outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(PACKAGE.parent), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except FileNotFoundError:  # no git
        return ""


def environment(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """What a result was made with: versions, device, code and time. It names no machine and no user."""
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    lock = PACKAGE.parent / "requirements.lock"
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": threads,
        "commit": commit(),
        "code": code_hash(*TRAINING_CODE),
        "lock": file_hash(lock) if lock.is_file() else "",
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
