import json
import math
import multiprocessing
import time

import numpy as np
import pytest

from mammo_utils.io import atomic_write, folder_lock, read_json, write_json


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"n": np.int64(1), "x": math.nan, "f": np.float32(0.5), "t": (1, 2)})
    assert json.loads(path.read_text()) == {"n": 1, "x": None, "f": 0.5, "t": [1, 2]}
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path)["n"] == 1 and list(tmp_path.iterdir()) == [path]


def test_unreadable_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def hold(folder, seconds):
    with folder_lock(folder):
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
    with folder_lock(tmp_path):
        pass
