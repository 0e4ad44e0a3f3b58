"""What a result rests on: no module too many, none too few."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest

from mammo_utils import provenance
from mammo_utils.io import PACKAGE, project_root
from mammo_utils.provenance import code_hash, environment, hash_of, imported_modules, source_hash, training_code
from tests.conftest import CHECKOUT


def test_hash_ignores_the_order_of_keys_alone():
    assert hash_of({"a": 1, "b": [1, 2]}) == hash_of({"b": (1, 2), "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 2})


def test_source_hash_is_blind_to_words_and_sees_code():
    one = source_hash('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1  # why\n')
    assert one == source_hash('"""Other."""\n\n\ndef f(x):\n    """Words."""\n    return (x + 1)\n')
    assert one == source_hash("def f(x):\n    return x + 1\n"), "a docstring may be added"
    assert one != source_hash('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 2\n')


TRAIN = """
import json, sys
from mammo_utils.study import load_study
from mammo_utils.training.run import train_run
train_run(load_study("config/paper.yaml", {settings!r}).run("hybrid_shared", "multi", "1v5", 6))
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] == "mammo_utils")))
"""


def test_the_training_code_is_what_a_training_process_imports(small_study, in_small_project):
    """A fresh process that trains a run imports these modules, and no other one of the package."""
    from tests.conftest import SMALL

    done = subprocess.run(
        [sys.executable, "-c", TRAIN.format(settings=SMALL)], capture_output=True, text=True, cwd=CHECKOUT, check=True
    )
    expected = imported_modules([provenance.TRAINING, provenance.KERNELS["cpu"]])
    assert json.loads(done.stdout.splitlines()[-1]) == list(expected)
    shutil.rmtree(small_study.run("hybrid_shared", "multi", "1v5", 6).folder)


@pytest.fixture
def package_copy(tmp_path, monkeypatch):
    """A copy of the package whose files may be changed; only its text is read, it is not imported."""
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", copy)
    code_hash.cache_clear()
    yield copy
    code_hash.cache_clear()


def test_each_imported_module_moves_the_hash_and_no_other_one_does(package_copy):
    imported = set(imported_modules([provenance.TRAINING, provenance.KERNELS["cpu"]]).values())
    every = set(package_copy.rglob("*.py"))
    assert package_copy / "config.py" in imported and package_copy / "training" / "run_state.py" in imported
    for other in (
        "data/download.py",
        "data/vindr_mammo.py",
        "models/costs.py",
        "images/preprocess.py",
        "plots/save.py",
    ):
        assert package_copy / other in every - imported, other
    before = training_code("cpu")
    for file in sorted(imported):
        text = file.read_text()
        file.write_text(text + "\nCHANGED = 1\n")
        code_hash.cache_clear()
        assert training_code("cpu") != before, file
        file.write_text(text)
    for file in every - imported:
        file.write_text(file.read_text() + "\nCHANGED = 1\n")
    code_hash.cache_clear()
    assert training_code("cpu") == before


def test_the_kernel_counts_by_the_backend_of_the_scan(package_copy):
    before = {backend: training_code(backend) for backend in ("cpu", "triton", "reference", "none")}
    assert before["reference"] == before["none"] and len(set(before.values())) == 3
    for name, changed in (("numba_kernel.py", {"cpu"}), ("triton_kernel.py", {"triton"})):
        file = package_copy / "models" / "kernels" / name
        text = file.read_text()
        file.write_text(text + "\nCHANGED = 1\n")
        code_hash.cache_clear()
        assert {backend for backend, value in before.items() if training_code(backend) != value} == changed
        file.write_text(text)


def test_imports_for_type_checkers_and_inside_functions_do_not_count(package_copy):
    (package_copy / "one.py").write_text(
        textwrap.dedent("""
        from typing import TYPE_CHECKING
        from mammo_utils import io
        if TYPE_CHECKING:
            from mammo_utils.data import cmmd
        def later():
            from mammo_utils.data import dicom
        """)
    )
    assert list(imported_modules(["mammo_utils.one"])) == ["mammo_utils", "mammo_utils.io", "mammo_utils.one"]


def test_environment_names_versions_and_no_machine():
    import getpass
    import socket

    facts = environment("cpu", 2)
    assert facts["versions"]["torch"] and facts["threads"] == 2
    text = json.dumps(facts)
    assert socket.gethostname() not in text and str(project_root()) not in text
    assert getpass.getuser() not in facts["platform"]
