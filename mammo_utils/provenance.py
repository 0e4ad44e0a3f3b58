"""Where a result comes from: hashes of values, files and code, and the environment.

Code is hashed by what it does: comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import inspect
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from mammo_utils.io import PACKAGE, plain_values, project_root, read_json

VERSIONED = """torch torchvision mamba-ssm triton numba numpy scipy pandas pyarrow scikit-learn pydicom pillow
safetensors""".split()
TRAINING = "mammo_utils.training.run"  # the module that a training process starts from
KERNELS = {  # backend of the scan -> the module that it imports when it first runs
    "cpu": "mammo_utils.models.kernels.cpu",
    "mamba_ssm": "mammo_utils.models.kernels.mamba_kernel",
    "triton": "mammo_utils.models.kernels.triton_kernel",
}


def hash_of(values: Any) -> str:
    """SHA-256 of JSON-like values, independent of the order of their keys."""
    text = json.dumps(plain_values(values), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- code -----------------------------------------------------------------------------------------------


def training_code(backend: str) -> str:
    """Hash of the code that a training run imports, with the kernel of its scan's `backend`."""
    return code_hash(TRAINING, *([KERNELS[backend]] if backend in KERNELS else []))


def folder_hash(folder: Path) -> str:
    """SHA-256 of the files in a folder, not of those in its folders; a missing folder has that of an empty one."""
    return hash_of({file.name: file_hash(file) for file in folder.glob("*") if file.is_file()})


@cache
def code_hash(*entries: str) -> str:
    """SHA-256 of the package's modules that importing `entries` (module names) imports, themselves included."""
    return hash_of([[name, source_hash(path.read_text("utf-8"))] for name, path in imported_modules(entries).items()])


def imported_modules(entries: Iterable[str]) -> dict[str, Path]:
    """The package's modules that a fresh process imports along with `entries`: name -> file, sorted by name.

    Found by reading the import statements, so that the answer does not depend on what else this process has
    imported. Imports inside functions do not run on import and do not count, nor do those for type checkers.
    """
    found: dict[str, Path] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        path = _module_file(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imports(ast.parse(path.read_text("utf-8")))]
    return dict(sorted(found.items()))


def _module_file(name: str) -> Path | None:
    """The file of a module of this package, None for any other name."""
    first, *parts = name.split(".")
    if first != PACKAGE.name:
        return None
    place = PACKAGE.joinpath(*parts)
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.Module) -> list[str]:
    """What a module's import statements may name as modules."""
    names = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names


def notebook_hash(name: str) -> str:
    """SHA-256 of what a notebook's own code does."""
    return source_hash(_notebook_source(name))


def notebook_code(name: str) -> str:
    """SHA-256 of what a notebook's code does, the package's modules that it imports included."""
    source = _notebook_source(name)
    return hash_of([source_hash(source), code_hash(*sorted(set(_imports(ast.parse(source)))))])


def _notebook_source(name: str) -> str:
    cells = read_json(project_root() / "notebooks" / f"{name}.ipynb")["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def function_hash(function: Callable) -> str:
    """SHA-256 of a function and of what it uses of its own module, directly or through others.

    Raises TypeError for an object without source code.
    """
    function = inspect.unwrap(function)
    tree = ast.parse(Path(inspect.getfile(function)).read_text("utf-8"))
    defined: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    used: dict[str, str] = {}
    waiting = [function.__name__]
    while waiting:
        name = waiting.pop()
        if name in used or name not in defined:
            continue
        used[name] = source_hash(ast.unparse(defined[name]))
        waiting += [node.id for node in ast.walk(defined[name]) if isinstance(node, ast.Name)]
    return hash_of(used)


def source_hash(source: str) -> str:
    """SHA-256 of what Python source does: its syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


# --- the environment ------------------------------------------------------------------------------------


@cache
def commit() -> str:
    """The checkout's commit, "+changes" appended if tracked files differ from it; "" outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(PACKAGE.parent), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except FileNotFoundError:  # no git
        return ""


def environment(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Versions, device, commit and time of a result. Names no machine and no user.

    Args:
        device: "cpu", or the GPU's name.
        threads: Threads of torch on a CPU, None where they do not matter.
    """
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import torch  # slow to import

    lock = PACKAGE.parent / "requirements.lock"
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "commit": commit(),
        "lock": file_hash(lock) if lock.is_file() else "",
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
