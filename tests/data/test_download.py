"""Fetching the release and saying whether it is complete, against an archive made here: nothing leaves this machine."""

import http.server
import inspect
import json
import shutil
import threading
import zipfile
from types import SimpleNamespace

import pytest

from mammo_utils.data import download as module
from mammo_utils.data.cohort import DataError
from mammo_utils.data.download import check_folder, download, fetch, main, unpack_outlines
from tests.release_builder import BREASTS, build_release, write_workbook

HOST = "https://www.cancerimagingarchive.net/wp-content/uploads"
WORKBOOK = "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx"
OUTLINES = "TOMPEI-CMMD_v01_20250123.zip"


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A release of 6 breasts, 12 images and 4 patients, and its numbers in place of the real ones."""
    for name, number in {"IMAGES": 12, "PATIENTS": 4, "BREASTS": 6, "OUTLINES": 3, "CHUNK": 5}.items():
        monkeypatch.setattr(module, name, number)
    return build_release(tmp_path / "release")


class Archive:
    """What tcia_utils' modules nbia and wordpress do, from a folder; `broken` series lose a file on their way."""

    def __init__(self, release):
        self.series = {f"1.2.{i}": path for i, path in enumerate(sorted((release / "CMMD").iterdir()))}
        self.release, self.broken, self.asked, self.stop_at = release, set(), [], None

    def getSeries(self, collection):
        assert collection == "CMMD"
        size = {uid: sum(f.stat().st_size for f in path.iterdir()) for uid, path in self.series.items()}
        return [{"SeriesInstanceUID": uid, "ImageCount": 1, "FileSize": size[uid]} for uid in self.series]

    def downloadSeries(self, series_data, path, input_type, max_workers):
        for uid in series_data:
            self.asked.append(uid)
            if uid == self.stop_at:
                (module.Path(path) / uid).mkdir(parents=True)
                raise KeyboardInterrupt
            if uid not in self.broken:
                shutil.copytree(self.series[uid], f"{path}/{uid}")
                (module.Path(path) / uid / "LICENSE").write_text("CC BY 4.0")

    def getAnalyses(self, query):
        return [{"collection_downloads": [1, 2]}]

    def getCollections(self, query):
        return [{"collection_downloads": []}]

    def getDownloads(self, ids):
        return [{"download_url": f"{HOST}/{WORKBOOK}"}, {"download_file": {"guid": f"{HOST}/{OUTLINES}"}}]

    def fetch(self, address, path):
        name = address.rpartition("/")[2]
        if name == WORKBOOK:
            shutil.copy(self.release / name, path)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for file in self.release.rglob("*_AnnotationFile.json"):
                    archive.write(file, file.relative_to(self.release))


@pytest.fixture
def archive(release, monkeypatch):
    archive = Archive(release)
    monkeypatch.setattr(module, "_tcia_utils", lambda: (archive, archive))
    monkeypatch.setattr(module, "fetch", archive.fetch)
    return archive


def test_what_is_fetched_is_complete_and_fetched_once(archive, tmp_path):
    folder, calls = tmp_path / "data", []
    download(folder, progress=lambda *call: calls.append(call))
    assert check_folder(folder) == [] and calls[-1] == (12, 12)
    assert not list(folder.rglob("._*")) and not (folder / ".partial").exists()
    before = len(archive.asked)
    download(folder)
    assert len(archive.asked) == before == 12


def test_a_stopped_download_goes_on_and_keeps_nothing_half(archive, tmp_path):
    folder, archive.stop_at = tmp_path / "data", sorted(archive.series)[7]
    with pytest.raises(KeyboardInterrupt):
        download(folder)
    kept = {path.name for path in (folder / "CMMD").iterdir()}
    assert len(kept) == 5 and archive.stop_at not in kept
    archive.stop_at, archive.asked = None, []
    download(folder)
    assert check_folder(folder) == [] and not kept & set(archive.asked)


def test_a_series_that_does_not_come_whole_is_named_and_the_rest_is_kept(archive, tmp_path):
    folder, archive.broken = tmp_path / "data", {"1.2.3"}
    with pytest.raises(DataError, match=r"1 of 12 series did not come whole, 1\.2\.3 for one: nothing came"):
        download(folder)
    assert len(list((folder / "CMMD").iterdir())) == 11
    assert "D2-0002: 1 of 2 images" in check_folder(folder)
    archive.broken = set()
    (damaged,) = (folder / "CMMD" / "1.2.0").glob("*.dcm")
    damaged.write_bytes(damaged.read_bytes()[:-300])  # a file that was cut off later is fetched again too
    download(folder)
    assert check_folder(folder) == []


def test_an_archive_that_stops_answering_is_not_asked_for_ever(archive, tmp_path):
    archive.broken = set(archive.series)
    with pytest.raises(DataError, match=r"stopped answering .* give the same command again"):
        download(tmp_path / "data")
    assert len(archive.asked) == 5


@pytest.mark.parametrize("listed", [None, [], [{"SeriesInstanceUID": "1.2"}], [{"odd": 1}]])
def test_without_an_archive_it_says_what_to_fetch_by_hand_and_where_to_put_it(archive, tmp_path, listed):
    archive.getSeries = lambda collection: listed
    with pytest.raises(DataError, match=r"tcia\.eqde-4b16.*wezw-bh22.*below"):
        download(tmp_path / "data")


def test_a_uid_cannot_lead_out_of_the_folder(archive, tmp_path):
    archive.getSeries = lambda collection: [{"SeriesInstanceUID": "../x", "ImageCount": 1, "FileSize": 1}]
    with pytest.raises(DataError, match="names no UIDs"):
        download(tmp_path / "data")


def test_tcia_utils_takes_what_it_is_given():
    nbia = pytest.importorskip("tcia_utils.nbia", reason="tcia_utils is not installed: pip install '.[download]'")
    from tcia_utils import wordpress

    needed = {"series_data", "path", "input_type", "max_workers"}
    assert needed <= set(inspect.signature(nbia.downloadSeries).parameters)
    assert "collection" in inspect.signature(nbia.getSeries).parameters
    for function in (wordpress.getAnalyses, wordpress.getCollections):
        assert "query" in inspect.signature(function).parameters
    assert "ids" in inspect.signature(wordpress.getDownloads).parameters


# --- the check --------------------------------------------------------------------------------------------


def test_the_command_says_what_is_missing(release, capsys):
    assert main(["--check", "--folder", str(release)]) == 0
    assert "is complete: 12 images of 4 patients" in capsys.readouterr().out
    cut, gone = sorted(release.rglob("*.dcm"))[:2]
    cut.write_bytes(cut.read_bytes()[:-2])
    gone.unlink()
    lost, broken = sorted(release.glob("TOMPEI-CMMD_v01*/*_AnnotationFile.json"))[:2]
    lost.unlink()
    broken.write_text("[{")
    assert main(["--check", "--folder", str(release)]) == 1
    said = capsys.readouterr().out
    assert "11 images; the release has 12." in said and "D1-0001: 3 of 4 images" in said
    assert f"{cut.relative_to(release).as_posix()}: " in said and "it was cut off" in said
    assert "2 annotation files; the release has 3." in said and f"{broken.name}: no JSON" in said


def test_the_check_names_a_table_that_is_missing_or_short(release):
    write_workbook(release / WORKBOOK, BREASTS[:5])
    assert "5 breasts in" in check_folder(release)[0]
    (release / WORKBOOK).unlink()
    assert WORKBOOK.split("_v01")[0] in check_folder(release)[-1]


def test_a_folder_that_is_not_there_says_what_to_do(tmp_path, capsys):
    assert main(["--check", "--folder", str(tmp_path / "nowhere")]) == 1
    assert "There is no data folder" in capsys.readouterr().err


# --- single files -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content, length = {"/whole": (b"abc", 3), "/cut": (b"abc", 30), "/long": (b"x" * 5000, 5000)}.get(
                self.path, (b"", None)
            )
            self.send_response(200 if length else 404)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield SimpleNamespace(address=f"http://127.0.0.1:{running.server_port}")
        running.shutdown()


def test_a_file_comes_whole_or_not_at_all(server, tmp_path, monkeypatch):
    fetch(f"{server.address}/whole", tmp_path / "a.xlsx")
    assert (tmp_path / "a.xlsx").read_bytes() == b"abc"
    monkeypatch.setattr(module, "LARGEST_FILE", 4000)
    for name, sentence in (
        ("cut", "sent 3 of 30 bytes"),
        ("gone", "could not be fetched"),
        ("long", "sends more than"),
    ):
        with pytest.raises(DataError, match=sentence):
            fetch(f"{server.address}/{name}", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.xlsx"]


def test_of_an_archive_only_annotation_files_are_unpacked_and_only_here(tmp_path):
    path = tmp_path / "outlines.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (
            "../../D1-0001_MLO_L_AnnotationFile.json",
            "deep/D1-0002_MLO_R_AnnotationFile.json",
            "__MACOSX/._D1-0002_MLO_R_AnnotationFile.json",
            "__MACOSX/D1-0003_MLO_R_AnnotationFile.json",
            "run.sh",
        ):
            archive.writestr(name, json.dumps([]))
    unpack_outlines(path, tmp_path / "out" / "of")
    found = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
    names = ["out/of/D1-0001_MLO_L_AnnotationFile.json", "out/of/D1-0002_MLO_R_AnnotationFile.json", "outlines.zip"]
    assert found == names
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack_outlines(path, tmp_path / "again")
