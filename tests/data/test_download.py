"""The download and the check of the real data, with a fake client of the archive: nothing leaves this machine."""

import builtins
import inspect
import shutil
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest

from mammo_utils.data import download as module
from mammo_utils.data.cohort import DataError
from mammo_utils.data.download import RELEASES, Release, check_folder, download, main
from tests.release_builder import BREASTS, build_release, write_workbook

WORKBOOK = "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx"


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A release of 6 breasts, 12 images and 4 patients, and its numbers in place of the real ones."""
    small = vars(RELEASES["cmmd"]) | {"images": 12, "patients": 4}
    monkeypatch.setitem(RELEASES, "cmmd", Release(**small))
    monkeypatch.setattr(module, "BREASTS", 6)
    monkeypatch.setattr(module, "OUTLINES", 3)
    return build_release(tmp_path / "release")


class FakeClient:
    """Copies series as `IDCClient` downloads them; of those in `broken` nothing arrives, and nothing is raised."""

    def __init__(self, release):
        self.sources = {f"1.2.{i}": path for i, path in enumerate(sorted((release / "CMMD").iterdir()))}
        rows = [
            {"SeriesInstanceUID": uid, "instanceCount": 1, "series_size_MB": size / 1e6}
            for uid, path in self.sources.items()
            for size in [sum(file.stat().st_size for file in path.iterdir())]
        ]
        other = {"collection_id": "nlst", "SeriesInstanceUID": "1.3", "instanceCount": 9, "series_size_MB": 1e9}
        self.index = pd.DataFrame([{"collection_id": "cmmd", "source_DOI": "10.1"} | row for row in [*rows, other]])
        self.broken, self.fetched, self.stop_at = set(), [], None

    def download_from_selection(self, downloadDir, seriesInstanceUID, dirTemplate, use_s5cmd_sync):
        assert use_s5cmd_sync and dirTemplate == "%collection_id/%SeriesInstanceUID"
        for uid in seriesInstanceUID:
            target = Path(downloadDir) / "cmmd" / uid
            if uid == self.stop_at:
                target.mkdir(parents=True)
                (target / "1-1.dcm1234").write_bytes(b"half")  # s5cmd renames a file when it is complete
                raise KeyboardInterrupt
            if uid not in self.broken:
                shutil.copytree(self.sources[uid], target, dirs_exist_ok=True)
                self.fetched.append(uid)


@pytest.fixture
def client(release, monkeypatch):
    """The fake client, a connection, and a function that adds the files fetched by hand."""
    fake = FakeClient(release)
    monkeypatch.setattr(module, "_open_client", lambda: fake)
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: open("/dev/null"))
    return fake


def add_labels(release, folder):
    shutil.copytree(release, folder, ignore=shutil.ignore_patterns("CMMD"), dirs_exist_ok=True)


def test_a_download_is_complete_and_a_second_one_fetches_nothing(client, release, tmp_path):
    folder = tmp_path / "data"
    download(folder)
    add_labels(release, folder)
    assert check_folder(folder) == [] and sorted(client.fetched) == sorted(client.sources)
    client.fetched.clear()
    download(folder)
    assert not client.fetched


def test_a_stopped_download_continues_and_fetches_no_complete_series_again(client, release, tmp_path):
    folder, client.stop_at = tmp_path / "data", sorted(client.sources)[7]
    with pytest.raises(KeyboardInterrupt):
        download(folder)
    kept = set(client.fetched)
    assert 0 < len(kept) < 12 and client.stop_at not in kept
    client.stop_at, client.fetched = None, []
    download(folder)
    add_labels(release, folder)
    assert check_folder(folder) == [] and not kept & set(client.fetched)


def test_an_incomplete_series_is_named_and_the_rest_is_kept(client, release, tmp_path):
    folder, client.broken = tmp_path / "data", {"1.2.3"}
    with pytest.raises(DataError, match=r"1 of 12 series are incomplete, for example 1\.2\.3; .* run the same command"):
        download(folder)
    add_labels(release, folder)
    assert len(list((folder / "cmmd").iterdir())) == 11
    assert "D2-0002: 1 of 2 images" in check_folder(folder)
    client.broken, client.fetched = set(), []
    (damaged,) = (folder / "cmmd" / "1.2.0").glob("*.dcm")
    damaged.write_bytes(damaged.read_bytes()[:-300])  # a file that was cut off later is fetched again too
    download(folder)
    assert check_folder(folder) == [] and client.fetched == ["1.2.0", "1.2.3"]


def test_without_a_connection_the_error_states_what_to_fetch_by_hand(client, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError("no such host")

    monkeypatch.setattr(module.urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"does not answer \(no such host\); connect .*doi\.org/10\.1.* by hand"):
        download(tmp_path / "data")
    assert main(["--folder", str(tmp_path / "data")]) == 1
    printed, error = capsys.readouterr()
    assert "does not answer" in error and WORKBOOK.split("_v01")[0] in printed and "wezw-bh22" in printed
    assert not client.fetched and not (tmp_path / "data").exists()


def test_without_the_package_the_error_states_how_to_install_it(tmp_path, monkeypatch):
    original = builtins.__import__

    def block(name, *arguments, **options):
        if name == "idc_index":
            raise ImportError("No module named 'idc_index'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", block)
    with pytest.raises(DataError, match=r"needs idc-index \(No module.*pip install -e '\.\[download\]'"):
        download(tmp_path / "data")


def test_a_disk_that_is_too_small_is_an_error_before_the_download(client, tmp_path, monkeypatch):
    client.index["series_size_MB"] *= 1e6
    needed = client.index.loc[client.index["collection_id"] == "cmmd", "series_size_MB"].sum() / 1e3
    usage = namedtuple("usage", "free")(2e9)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=f"has 2 GB free, but needs {needed:.0f} GB"):
        download(tmp_path / "data")
    assert not client.fetched


def test_the_real_client_has_the_release_and_takes_the_arguments():
    pytest.importorskip("idc_index", reason="idc-index is not installed: pip install '.[download]'")
    import idc_index_data
    from idc_index import IDCClient

    needed = set(inspect.signature(FakeClient.download_from_selection).parameters)
    assert needed <= set(inspect.signature(IDCClient.download_from_selection).parameters)
    columns = ["collection_id", "source_DOI", "PatientID", "SeriesInstanceUID", "instanceCount", "series_size_MB"]
    index = pd.read_parquet(idc_index_data.IDC_INDEX_PARQUET_FILEPATH, columns=columns)
    for release in RELEASES.values():
        series = index[index["collection_id"] == release.collection]
        found = (
            series["instanceCount"].sum(),
            series["PatientID"].nunique(),
            round(series["series_size_MB"].sum() / 1e3),
        )
        assert found == (release.images, release.patients, release.gigabytes)


# --- the check ----------------------------------------------------------------------------------------------


def test_the_command_lists_what_is_missing(release, capsys):
    assert main(["--check", "--folder", str(release)]) == 0
    assert "is complete: 12 images of 4 patients" in capsys.readouterr().out
    truncated, gone = sorted(release.rglob("*.dcm"))[:2]
    truncated.write_bytes(truncated.read_bytes()[:-2])
    gone.unlink()
    lost, broken = sorted(release.glob("TOMPEI-CMMD_v01*/*_AnnotationFile.json"))[:2]
    lost.unlink()
    broken.write_text("[{")
    assert main(["--check", "--folder", str(release)]) == 1
    printed = capsys.readouterr().out
    assert "11 images; the release has 12." in printed and "D1-0001: 3 of 4 images" in printed
    assert f"{truncated.relative_to(release).as_posix()}: " in printed and "it is cut off" in printed
    assert "2 annotation files; the release has 3." in printed and f"{broken.name}: not JSON" in printed


def test_a_missing_or_short_table_is_named(release):
    write_workbook(release / WORKBOOK, BREASTS[:5])
    assert "5 breasts in" in check_folder(release)[0]
    (release / WORKBOOK).unlink()
    assert WORKBOOK.split("_v01")[0] in check_folder(release)[-1]
    (release / "CMMD_clinicaldata_revision.csv").write_text("")
    assert "without it there is no BI-RADS" in check_folder(release)[-1]
    write_workbook(release / WORKBOOK)
    write_workbook(release / "copy" / WORKBOOK)
    assert "should hold one workbook" in check_folder(release)[-1]


def test_the_check_of_cbis_ddsm_counts_images_and_case_descriptions(release):
    images, _, tables = check_folder(release, "cbis-ddsm")
    assert images == "12 images; the release has 10,239." and tables == "0 case descriptions; the release has 4."
    (release / "mass_case_description_train_set.csv").write_text("")
    assert check_folder(release, "cbis-ddsm")[2] == "1 case descriptions; the release has 4."


def test_a_missing_folder_is_an_error_that_states_what_to_do(tmp_path, capsys):
    assert main(["--check", "--folder", str(tmp_path / "nowhere")]) == 1
    assert "There is no data folder" in capsys.readouterr().err
