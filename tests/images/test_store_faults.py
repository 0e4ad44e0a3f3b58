"""What can happen to a store and its sources: damage, a full or read-only disk, files that go, a killed parent."""

import errno
import multiprocessing
import os
import resource
import signal
import time

import pandas as pd
import pytest

from mammo_utils.data.cohort import DataError
from mammo_utils.data.sources import read_cohort
from mammo_utils.images import build_store as stores
from mammo_utils.images import grey
from mammo_utils.images import store as reading
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.images.grey import PixelError, read_first
from mammo_utils.images.store import load_store
from mammo_utils.io import is_alive
from tests.release_builder import build_release

FILES = ("images.npy", "index.parquet", "store.json", "excluded.csv", "unused.parquet", "files.json")


@pytest.fixture
def cohort(tmp_path):
    return read_cohort("cmmd", build_release(tmp_path / "release", annotate=False))


def build(cohort, folder, **options):
    return build_store(cohort, folder, size=8, workers=1, **options)


def read_all(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


DAMAGES = {
    "a bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "its start": lambda data: bytes(8) + data[8:],
    "gone": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_store_is_named_and_built_again(cohort, tmp_path, capsys, name, damage):
    folder = tmp_path / "store"
    build(cohort, folder)
    before = read_all(folder)
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(DAMAGES[damage](before[name]))
    if name == "files.json":
        load_store(folder)
    elif (name, damage) != ("store.json", "a bit"):  # in a hash or a name: the pixels or tables do not agree with it
        with pytest.raises(DataError, match="run notebook 02_preprocessing of the study") as error:
            load_store(folder)
        assert name in str(error.value) or (name, damage) == ("store.json", "gone")
    build(cohort, folder)
    assert read_all(folder) == before
    assert damage == "gone" or "built again" in capsys.readouterr().out or damage == "a bit"


def test_pixels_are_compared_once_per_process(cohort, tmp_path, monkeypatch):
    build(cohort, tmp_path / "store")
    compared = []
    digest = reading.hashlib.file_digest
    monkeypatch.setattr(reading.hashlib, "file_digest", lambda *a: compared.append(a[0].name) or digest(*a))
    for _ in range(3):
        load_store(tmp_path / "store")
    assert not [name for name in compared if str(name).endswith("images.npy")], "build has compared them"
    monkeypatch.setattr(reading, "_intact", set())
    for _ in range(3):
        load_store(tmp_path / "store")
    assert len([name for name in compared if str(name).endswith("images.npy")]) == 1


def test_another_window_is_another_store(cohort, tmp_path):
    plain = build(cohort, tmp_path / "store")
    asked = build(cohort, tmp_path / "store", window=True)
    assert not plain.settings["window"] and asked.settings["window"]
    assert (asked.index["note"] == "its header has no window").all() and (plain.index["note"] == "").all()


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK", 4)
    folder, seen = tmp_path / "store", []
    build(cohort, tmp_path / "other")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # bytes per file
    try:
        with pytest.raises(
            DataError, match=r"^The image store .*store cannot be written \(File too large\)\. Make room"
        ):
            build(cohort, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    build(cohort, folder, progress=lambda done, total: seen.append(done))
    assert seen[0] > 0 or not list(folder.glob("chunks-*")), "finished chunks are kept"
    assert read_all(folder) == read_all(tmp_path / "other")


def test_a_finished_store_opens_in_a_read_only_folder(cohort, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    store = build(cohort, folder)
    (folder / ".lock").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == folder and mode == os.W_OK))
    assert build(cohort, folder).hash == store.hash == load_store(folder).hash
    assert not (folder / ".lock").exists()
    with pytest.raises(DataError, match="is read-only and holds a store of other data or settings"):
        build(cohort, folder, resize="pad")
    assert load_store(folder).hash == store.hash


def test_an_image_that_has_gone_is_excluded_with_its_reason(cohort, tmp_path):
    path = "CMMD/series-4/1-1.dcm"  # L-CC of D1-0002
    build(cohort, tmp_path / "store")
    (cohort.folder / path).unlink()
    store = build(cohort, tmp_path / "store")
    (lost,) = store.excluded.to_dict("records")
    assert lost["path"] == path and "no longer there" in lost["reason"]
    assert not apply_store(cohort, store).exams.loc["D1-0002", "L_CC"]


def test_a_store_outlives_a_data_folder_that_is_not_mounted(cohort, tmp_path):
    store = build(cohort, tmp_path / "store")
    cohort.folder.rename(tmp_path / "away")
    with pytest.raises(DataError, match="holds none of the images that notebook 01 found"):
        build(cohort, tmp_path / "store")
    assert load_store(tmp_path / "store").hash == store.hash


def test_the_first_image_that_can_be_read_is_shown_and_the_others_are_named(cohort, capsys):
    paths = cohort.images["path"].tolist()
    for path in paths[:2]:
        (cohort.folder / path).write_bytes((cohort.folder / path).read_bytes()[:-200])
    (cohort.folder / paths[2]).unlink()
    row, image = read_first(cohort.folder, cohort.images)
    assert row["path"] == paths[3] and image.values.shape == (24, 20)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(f"not shown: {path}: ") for line, path in zip(lines, paths, strict=False)] == 3 * [True]
    with pytest.raises(PixelError, match="None of 3 images can be used"):
        read_first(cohort.folder, cohort.images[:3])
    assert isinstance(row, pd.Series)


def build_slowly(release, folder, started):
    stores.CHUNK = 1
    cohort = read_cohort("cmmd", release)

    def report(done, total):
        if done:
            started.put([child.pid for child in multiprocessing.active_children()])
            time.sleep(60)

    build_store(cohort, folder, size=8, workers=2, progress=report)


def test_a_killed_parent_leaves_no_worker_behind(cohort, tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Queue()
    parent = context.Process(target=build_slowly, args=(cohort.folder, tmp_path / "store", started))
    parent.start()
    workers = started.get(timeout=120)
    assert len(workers) == 2 and all(map(is_alive, workers))
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + 5
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(process):
    """Whether a process lives; one that has ended and waits to be reaped does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return is_alive(process) and not os.path.isdir("/proc/self")


def test_a_passing_outage_excludes_no_image_for_good(cohort, tmp_path, monkeypatch):
    """A network file system that fails for a moment: the same command reads the images again."""
    folder = tmp_path / "store"

    def fail(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(grey, "read_dataset", fail)
    with pytest.raises(DataError, match="the file cannot be read now"):
        build(cohort, folder)
    monkeypatch.undo()
    store = build(cohort, folder)
    assert store.excluded.empty and len(store.index) == len(cohort.images[cohort.images["status"] == "used"])
