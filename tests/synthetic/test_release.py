import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from openpyxl import load_workbook

from mammo_utils.synthetic import write_release
from mammo_utils.synthetic.__main__ import main
from mammo_utils.synthetic.cases import exams_of, iterate_breasts
from mammo_utils.synthetic.headers import make_uid
from mammo_utils.synthetic.tables import ANNOTATIONS, CLINICAL_SHEET, WORKBOOK

SHARED = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real tables are not beside this checkout")
SMALL = {"n_exams": 14, "rows": 48, "columns": 40, "seed": 5}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), **SMALL, workers=1)


def hash_files(folder):
    """Hash every file; of workbooks the cells, because their containers store the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            if path.suffix == ".xlsx":
                content = repr([[list(row) for row in s.values] for s in load_workbook(path)]).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def read_headers(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


def test_folders_are_those_of_the_downloader(release):
    paths = [path.relative_to(release).as_posix() for path in release.rglob("*.dcm")]
    pattern = r"manifest-\w+/CMMD/S[12]-\d{4}/0\d-1[78]-201[012]-NA-NA-\d{5}/1\.000000-NA-\d{5}/1-[1-4]\.dcm"
    assert paths and all(re.fullmatch(pattern, path) for path in paths), paths[0]
    metadata = pd.read_csv(release / "manifest-synthetic" / "metadata.csv")
    assert len(metadata) == SMALL["n_exams"] and metadata["Number of Images"].sum() == len(paths)
    for location in metadata["File Location"]:
        assert location.startswith(".\\")
        assert (release / "manifest-synthetic" / location[2:].replace("\\", "/")).is_dir()


@real
def test_metadata_has_the_real_columns(release):
    ours = pd.read_csv(release / "manifest-synthetic" / "metadata.csv", keep_default_na=False)
    theirs = pd.read_csv(SHARED / "cmmd" / "metadata.csv", keep_default_na=False)
    assert list(ours) == list(theirs)
    for name in ("Collection", "3rd Party Analysis", "Modality", "SOP Class Name", "SOP Class UID"):
        assert set(ours[name]) == set(theirs[name]), name


@real
def test_headers_follow_the_real_pattern(release):
    """Every attribute of the real headers occurs, with the real value unless it differs between patients."""
    table = pd.read_csv(SHARED / "cmmd" / "dicom_headers_87_patients.csv", dtype=str, keep_default_na=False)
    table = table[table.BitsStored == "8"]
    own = """image_id Columns Rows SOPInstanceUID InstanceCreatorUID InstanceCreationTime SeriesInstanceUID StudyDate
    StudyInstanceUID PatientID PatientName PatientAge InstanceNumber ContentDate SeriesDate AcquisitionDate
    Manufacturer DeidentificationMethod ImagerPixelSpacing CodeMeaning CodeValue""".split()
    for header in read_headers(release):
        code = header.ViewCodeSequence[0]
        same = (table.ImageLaterality == header.ImageLaterality) & (table.CodeValue == code.CodeValue)
        expected = table[same].iloc[0]
        assert code.CodeMeaning == expected.CodeMeaning
        for name in set(table) - set(own):
            value = header[name].value
            text = str(list(value)) if isinstance(value, pydicom.multival.MultiValue) else str(value or "")
            if name in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"):
                assert float(value) == float(expected[name]), name
            else:
                assert text.lstrip("0") == expected[name].lstrip("0"), (name, text, expected[name])


def test_headers_are_valid_and_marked_synthetic(release):
    headers = read_headers(release)
    uids = [h[n].value for h in headers for n in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    assert all(pydicom.uid.UID(uid).is_valid and uid.startswith("2.25.") for uid in uids)
    assert len({h.SOPInstanceUID for h in headers}) == len(headers)
    for header in headers:
        assert header.Rows == 48 and header.Columns == 40
        np.testing.assert_allclose(header.ImagerPixelSpacing, [215.845 / 48, 180.09 / 40], rtol=1e-4)
        assert header.pixel_array.shape == (48, 40)
        for name in ("Manufacturer", "ImageComments", "InstitutionName"):
            assert "SYNTHETIC" in header[name].value
        assert header.PatientID.startswith(("S1-", "S2-"))
        left = header.pixel_array[:, :4].sum() > header.pixel_array[:, -4:].sum()
        assert left == (header.ImageLaterality == "L"), "chest wall on the side in the header"


def test_uids_are_uuids_of_their_content():
    number = int(make_uid("study", 1)[5:])
    assert uuid.UUID(int=number).version == 8 and uuid.UUID(int=number).variant == uuid.RFC_4122
    assert make_uid("study", 1) == make_uid("study", 1) != make_uid("study", 2)


def test_each_breast_has_one_cc_and_one_mlo_in_the_real_order(release):
    views = pd.DataFrame(
        [
            (h.PatientID, h.InstanceNumber, h.ImageLaterality, h.ViewCodeSequence[0].CodeMeaning)
            for h in read_headers(release)
        ]
    )
    for _, exam in views.groupby(0):
        exam = exam.sort_values(1)
        assert list(exam[1]) == list(range(1, len(exam) + 1)) and len(exam) in (2, 4)
        assert list(exam[3]) == ["cranio-caudal", "medio-lateral oblique"] * (len(exam) // 2)
        assert list(exam[2]) == sorted(exam[2]) and exam[2].value_counts().eq(2).all()


@real
def test_workbook_has_the_real_sheets_and_header_rows(release):
    ours = load_workbook(release / WORKBOOK)
    theirs = load_workbook(SHARED / "tompei_sample" / "TOMPEI-CMMD_clinical_data_v01_20250121.SAMPLE.xlsx")
    assert ours.sheetnames == theirs.sheetnames
    for name, rows in (("Imaging Diagnosis Details Sheet", [1, 2]), ("Lesion Details Sheet", [2, 3])):
        for row in rows:
            a, b = ([cell.value for cell in book[name][row]] for book in (ours, theirs))
            assert a == b, (name, row)
    merged = [
        {str(area) for area in book["Imaging Diagnosis Details Sheet"].merged_cells.ranges} for book in (ours, theirs)
    ]
    assert merged[0] == merged[1]
    a, b = (load_workbook(f)["Sheet1"] for f in (release / CLINICAL_SHEET, SHARED / "cmmd" / CLINICAL_SHEET))
    assert [cell.value for cell in a[1]] == [cell.value for cell in b[1]]


def test_workbook_has_the_labels_and_is_marked_synthetic(release):
    book = load_workbook(release / WORKBOOK)
    assert "SYNTHETIC" in book["README"]["A1"].value
    rows = list(book["Imaging Diagnosis Details Sheet"].iter_rows(min_row=3, values_only=True))
    breasts = list(iterate_breasts(exams_of(14, 5)))
    assert all(len(row) == 33 for row in rows) and len(rows) == len(breasts)
    for row, (exam, breast) in zip(rows, breasts, strict=True):
        clean = [value.strip("\u200b") if isinstance(value, str) else value for value in row]
        assert clean[:2] == [exam.id, breast.side] and clean[3] == breast.classification
        assert clean[2] == (exam.age if breast.cmmd else None) and clean[21] == breast.birads
        assert clean[5] == (breast.density or None)
    assert any("\u200b" in str(value) for row in rows for value in row), "zero-width spaces, as in the release"
    lesions = list(book["Lesion Details Sheet"].iter_rows(min_row=4, values_only=True))
    assert lesions[-1][0] is None and lesions[-1][3] == sum(row[3] for row in lesions[:-1])
    for row, (_, breast) in zip(lesions, breasts, strict=False):
        marks = sum(value == 1 for value in row[5:15])
        assert row[3] == marks == len(breast.findings)


def test_annotations_belong_to_mlo_views_and_lie_in_the_image(release):
    findings = {(e.id, b.side): b.findings for e, b in iterate_breasts(exams_of(14, 5)) if b.findings}
    files = {tuple(re.split(r"_MLO_|_Ann", path.name)[:2]): path for path in (release / ANNOTATIONS).glob("*.json")}
    assert set(files) == set(findings)
    labels, types = [], set()
    for key, path in files.items():
        lesions = json.loads(path.read_text())
        assert [lesion["label"].strip() for lesion in lesions] == [f.kind for f in findings[key]]
        for lesion in lesions:
            assert set(lesion) == {"cgPoints", "label", "_id", "type", "color"}
            points = np.array([[point["x"], point["y"]] for point in lesion["cgPoints"]])
            assert len(points) > 20 and (points > -4).all() and (points < [44, 52]).all()
            labels.append(lesion["label"])
            types.add(lesion["type"])
    assert types == {"Draw", "Polyline"} and any(label.endswith(" ") for label in labels)
    junk = list((release / "__MACOSX").rglob("*.json"))
    assert junk and all(path.name.startswith("._") for path in junk)


def test_files_do_not_depend_on_the_number_of_workers_and_exams(release, tmp_path):
    two = write_release(tmp_path / "two", **SMALL, workers=2)
    assert hash_files(two) == hash_files(release)
    fewer = hash_files(write_release(tmp_path / "fewer", **{**SMALL, "n_exams": 4}, workers=1))
    images = {
        name: value for name, value in fewer.items() if name.endswith((".dcm", "File.json")) and "MACOSX" not in name
    }
    assert images.items() <= hash_files(release).items()
    other = hash_files(write_release(tmp_path / "other", **{**SMALL, "seed": 6}, workers=1))
    assert not set(images.values()) & set(other.values())


def list_children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_a_killed_command_leaves_no_workers_and_can_be_continued(tmp_path):
    whole = write_release(tmp_path / "whole", n_exams=40, rows=160, columns=133, workers=1)
    folder = tmp_path / "killed"
    line = "-m mammo_utils.synthetic --n-exams 40 --rows 160 --columns 133 --workers 2".split()
    process = subprocess.Popen([sys.executable, *line, str(folder)], stdout=subprocess.DEVNULL)
    images = folder / "manifest-synthetic" / "CMMD"
    deadline = time.monotonic() + 60
    while not images.is_dir() or len(list(images.iterdir())) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = list_children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived the command"
        time.sleep(0.05)
    assert not (folder / WORKBOOK).exists()
    drawn = {path: path.stat().st_mtime_ns for path in images.rglob("*.dcm")}
    assert 0 < len(drawn) < len(list(whole.rglob("*.dcm")))
    write_release(folder, n_exams=40, rows=160, columns=133, workers=1)
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn, "finished exams were drawn again"
    assert hash_files(folder) == hash_files(whole)


def test_a_finished_release_is_not_changed_and_a_lost_exam_is_drawn_again(tmp_path):
    folder = write_release(tmp_path, **{**SMALL, "n_exams": 3}, workers=1)
    before = hash_files(folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    seen = []
    write_release(tmp_path, **{**SMALL, "n_exams": 3}, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)] and {path: path.stat().st_mtime_ns for path in stamps} == stamps
    exam = next((folder / "manifest-synthetic" / "CMMD").iterdir())
    for path in sorted(exam.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    exam.rmdir()
    write_release(tmp_path, **{**SMALL, "n_exams": 3}, workers=1)
    assert hash_files(folder) == before


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"n_exams": 0}, "n_exams is 0; it must be 1 or more"),
        ({"rows": 8}, "rows is 8; it must be 32 or more"),
        ({"contrast": -1}, "contrast is -1"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"difficulty": 1.5}, "difficulty is 1.5; it must be 0 to 1"),
        ({"bilateral": -0.1}, "bilateral is -0.1; it must be 0 to 1"),
        ({"visible": "three"}, "visible is three; it must be both, one, comparing"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path, settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        write_release(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_files_or_another_release_is_refused(release, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds other files \(mine.txt\); name an empty folder"):
        write_release(tmp_path, **SMALL)
    with pytest.raises(ValueError, match="drawn with seed 5, not 6; delete it or name another folder"):
        write_release(release, **{**SMALL, "seed": 6})
    with pytest.raises(ValueError, match="is a file; name a folder"):
        write_release(tmp_path / "mine.txt", **SMALL)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_command(tmp_path, capsys):
    assert main([str(tmp_path / "new"), "--n-exams", "2", "--rows", "32", "--columns", "32", "--null"]) == 0
    out = capsys.readouterr().out
    assert "drawing: 2 of 2 exams" in out and "synthetic release of 2 exams" in out
    readme = [cell.value for cell in load_workbook(tmp_path / "new" / WORKBOOK)["README"]["A"]]
    assert any(str(value).startswith("Null setting") for value in readme)
    assert main([str(tmp_path / "new"), "--n-exams", "0"]) == 2
    assert "n_exams is 0" in capsys.readouterr().err


def test_an_interrupt_is_one_line(monkeypatch, tmp_path, capsys):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("mammo_utils.synthetic.__main__.write_release", interrupt)
    assert main([str(tmp_path / "new")]) == 130
    assert capsys.readouterr().err == "stopped; the same command continues\n"
