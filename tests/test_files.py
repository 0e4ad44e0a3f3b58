import json
import math
import multiprocessing
import time

import numpy as np
import pytest

from mammo_utils import files


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"n": np.int64(1), "x": math.nan, "f": np.float32(0.5), "t": (1, 2)})
    assert json.loads(path.read_text()) == {"n": 1, "x": None, "f": 0.5, "t": [1, 2]}
    with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path)["n"] == 1 and list(tmp_path.iterdir()) == [path]


def test_unreadable_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not readable"):
        files.read_json(tmp_path / "a.json")


def test_hash_ignores_the_order_of_keys_alone():
    assert files.hash_of({"a": 1, "b": [1, 2]}) == files.hash_of({"b": (1, 2), "a": 1})
    assert files.hash_of({"a": 1}) != files.hash_of({"a": 2})


def test_source_hash_is_blind_to_words_and_sees_code():
    one = files.source_hash('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1  # why\n')
    assert one == files.source_hash('"""Other."""\n\n\ndef f(x):\n    """Words."""\n    return (x + 1)\n')
    assert one != files.source_hash('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 2\n')


def test_code_hash_covers_the_parts_that_exist():
    assert all((files.PACKAGE / part).exists() for part in files.TRAINING_CODE)
    assert files.code_hash() != files.code_hash("models")


def hold(folder, seconds):
    with files.folder_lock(folder):
        (folder / "held").touch()
        time.sleep(seconds)


def test_a_second_process_waits_and_a_killed_one_leaves_no_lock(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, 60))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    import fcntl

    with (tmp_path / ".lock").open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.join()
    with files.folder_lock(tmp_path):
        pass


def test_environment_names_versions_and_no_machine():
    facts = files.environment("cpu", 2)
    assert facts["versions"]["torch"] and facts["threads"] == 2 and facts["code"]
    import getpass
    import socket

    text = json.dumps(facts)
    assert socket.gethostname() not in text and str(files.project_root()) not in text
    assert getpass.getuser() not in facts["platform"]
