"""Damaged files are read, listed or refused: a few here, ten thousand with `python -m tests.fuzz`."""

import io
import json
import zipfile

import pydicom
import pytest

from mammo_utils.data.cohort import DataError
from mammo_utils.data.sources import read_cohort
from tests.fuzz import fuzz, within_limits
from tests.release_builder import build_release


def test_damaged_files_are_read_or_listed_or_refused():
    found = fuzz(100, seed=1, workers=1)
    assert not found["wrong"] and sum(found["counts"].values()) == 100
    assert {outcome for _, outcome in found["counts"]} == {"read", "listed", "refused"}
    assert within_limits(found), found


def test_the_harness_can_fail(monkeypatch, tmp_path):
    """A reader that raises an unexpected error is reported."""
    from tests import fuzz as module

    folder = module.build_folder(tmp_path / "release")
    monkeypatch.setattr(module, "read_cohort", lambda *_: (_ for _ in ()).throw(KeyError("lost")))
    outcomes = {module.try_input(folder, number, 0)[1] for number in range(3)}
    assert all(outcome.startswith("wrong: ") and "lost" in outcome for outcome in outcomes)


def test_a_number_too_large_for_a_float_is_listed(tmp_path):
    folder = build_release(tmp_path)
    path = next(folder.glob("TOMPEI-CMMD_v01*/D1-0002*.json"))
    values = json.loads(path.read_text())
    values[0]["cgPoints"][0]["x"] = 10**400
    path.write_text(json.dumps(values))
    listed = read_cohort("cmmd", folder).excluded
    assert listed["reason"].eq("lesion 1 has no label or no points {x, y}").sum() == 1


@pytest.mark.parametrize("tag", ["Rows", "Columns", "BitsStored"])
@pytest.mark.parametrize("value", [1e300, -1e300, 2.0**62, -1.0])
def test_a_senseless_number_in_a_header_is_listed(tmp_path, tag, value):
    """Where no column of a table can hold it, it must not end the reading of the others."""
    folder = build_release(tmp_path)
    path = folder / "CMMD" / "series-4" / "1-1.dcm"
    dataset = pydicom.dcmread(path)
    dataset[tag] = pydicom.DataElement(tag, "FD", value)
    dataset.save_as(path)
    cohort = read_cohort("cmmd", folder)
    listed = cohort.excluded.set_index("what").at["CMMD/series-4/1-1.dcm", "reason"]
    assert ("BitsStored is out of range" if tag == "BitsStored" else "is not the size of a mammogram") in listed
    assert len(listed) < 1000 and len(cohort.exams) > 1


@pytest.mark.parametrize("fault", ["blown up", "a million rows"])
def test_a_workbook_that_is_larger_than_it_looks(tmp_path, fault):
    folder = build_release(tmp_path)
    path = next(folder.glob("*.xlsx"))
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet2.xml"
    if fault == "blown up":
        parts[name] += b" " * 2**28
    else:
        parts[name] = parts[name].replace(b"</sheetData>", b'<row r="1048576"><c r="A1048576"/></row></sheetData>')
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    sentence = "unpacks to more than 100 MB" if fault == "blown up" else "more than 100,000 rows"
    with pytest.raises(DataError, match=sentence):
        read_cohort("cmmd", folder)
