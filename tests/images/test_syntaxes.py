"""Compressed DICOM decodes to the pixels that were compressed, or is excluded with its reason."""

import os
from functools import partial

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless, RLELossless

from mammo_utils.data.dicom import LARGEST_IMAGE
from mammo_utils.images import decoder
from mammo_utils.images.grey import PixelError
from mammo_utils.images.preprocess import prepare_image
from tests.release_builder import write_dicom


def picture(dtype):
    y, x = np.mgrid[0:64, 0:48]
    top = np.iinfo(dtype).max
    values = (top * np.exp(-((y - 30) ** 2 + (x - 4) ** 2) / 300)).astype(dtype)
    values[10:14, 6:9] = top // 3
    return values


def write(path, dtype):
    write_dicom(path, "D1-0001", "L", "CC", 1, values=picture(dtype))
    return pydicom.dcmread(path)


def jpeg_lossless(dataset):
    """Compress with JPEG Lossless (ITU-T T.81, process 14, predictor 1), for which pydicom has no encoder.

    Every category of difference has a Huffman code of five bits.
    """
    values = dataset.pixel_array.astype(int)
    rows, columns = values.shape
    before = np.roll(values, 1, axis=1)
    before[1:, 0] = values[:-1, 0]
    before[0, 0] = 1 << (dataset.BitsStored - 1)
    bits = []
    for difference in ((values - before + 2**15) % 2**16 - 2**15).ravel():
        category = int(abs(difference)).bit_length()
        bits.append(f"{category:05b}")
        if 0 < category < 16:
            bits.append(f"{difference if difference > 0 else difference + 2**category - 1:0{category}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    coded = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    size = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    frame = bytes([dataset.BitsStored]) + size + bytes([1, 1, 0x11, 0])
    table = bytes([0]) + bytes([0, 0, 0, 0, 17]) + bytes(11) + bytes(range(17))
    scan = bytes([1, 1, 0, 1, 0, 0])
    parts = [(0xC3, frame), (0xC4, table), (0xDA, scan)]
    segments = b"".join(bytes([0xFF, mark]) + (len(data) + 2).to_bytes(2, "big") + data for mark, data in parts)
    dataset.PixelData = encapsulate([b"\xff\xd8" + segments + coded + b"\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, "JPEG Lossless"], ids=str)
def test_a_lossless_file_is_prepared_like_the_plain_one(syntax, dtype, tmp_path):
    dataset = write(tmp_path / "plain.dcm", dtype)
    if syntax == "JPEG Lossless":
        jpeg_lossless(dataset)
    else:
        dataset.compress(syntax)
    dataset.save_as(tmp_path / "packed.dcm")
    packed = pydicom.dcmread(tmp_path / "packed.dcm")
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    expected, found = (prepare_image(tmp_path / f"{name}.dcm", "L", 32) for name in ("plain", "packed"))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.pixels.max() > 100


@pytest.mark.parametrize(
    ("syntax", "options"), [(JPEG2000, {"j2k_psnr": [50]}), (JPEGLSNearLossless, {"jls_error": 2})]
)
def test_a_lossy_file_is_near(syntax, options, tmp_path):
    dataset = write(tmp_path / "plain.dcm", np.uint8)
    dataset.compress(syntax, **options)
    dataset.save_as(tmp_path / "packed.dcm")
    expected, found = (
        prepare_image(tmp_path / f"{name}.dcm", "L", 32).pixels.astype(int) for name in ("plain", "packed")
    )
    assert 0 < np.abs(found - expected).max() <= 4


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_a_damaged_stream_is_excluded_with_a_reason(syntax, tmp_path):
    dataset = write(tmp_path / "plain.dcm", np.uint8)
    dataset.compress(syntax)
    data = bytearray(dataset.PixelData)
    data[len(data) // 3 : -16] = bytes(len(data) - 16 - len(data) // 3)
    dataset.PixelData = bytes(data)
    dataset.save_as(tmp_path / "damaged.dcm")
    try:
        found = prepare_image(tmp_path / "damaged.dcm", "L", 32)
    except PixelError as error:
        assert str(error)
    else:
        assert found.pixels.shape == (32, 32), "a decoder may make something of it"


def test_a_large_image_may_take_longer():
    """The limit is over seven times what JPEG 2000 needs for the largest film, and short for a small damaged file."""
    assert decoder.time_limit(LARGEST_IMAGE) > 7 * 0.08e-6 * LARGEST_IMAGE and decoder.time_limit(64 * 48) < 4


@pytest.mark.parametrize("how", ["ends", "never ends", "takes all memory"])
def test_a_decoder_that_misbehaves_costs_one_image(how, tmp_path, monkeypatch):
    """The next image is decoded nevertheless."""
    good, bad = tmp_path / "good.dcm", tmp_path / "bad.dcm"
    for path in (good, bad):
        dataset = write(tmp_path / "plain.dcm", np.uint8)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    child = decoder._Decoder()
    monkeypatch.setattr(decoder, "_decoder", lambda _: child)
    monkeypatch.setattr(decoder, "_serve", partial(misbehave, how))
    reason = {
        "ends": "crashed the decoder",
        "never ends": "took too long to decode",
        "takes all memory": "MemoryError",
    }[how]
    with pytest.raises(PixelError, match=reason):
        prepare_image(bad, "L", 32)
    assert prepare_image(good, "L", 32).pixels.max() > 100
    child.process.kill()


def test_an_interrupted_request_leaves_no_answer_for_the_next(tmp_path, monkeypatch):
    """Somebody stops a notebook's cell while an image is decoded, and runs it again."""
    for name, dtype in (("first", np.uint8), ("second", np.uint16)):
        dataset = write(tmp_path / "plain.dcm", dtype)
        dataset.compress(RLELossless)
        dataset.save_as(tmp_path / f"{name}.dcm")
    child = decoder._Decoder()
    monkeypatch.setattr(decoder, "_decoder", lambda _: child)
    child._start()
    poll = child.pipe.poll

    def interrupted(seconds):
        poll(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(child.pipe, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.decompress(tmp_path / "first.dcm")
    np.testing.assert_array_equal(decoder.decompress(tmp_path / "second.dcm"), picture(np.uint16))
    child.process.kill()


def misbehave(how, pipe):
    """Serve as the decoding process, except for a file named bad.dcm."""

    def read(path):
        while path.name == "bad.dcm" and how == "never ends":
            pass
        if path.name == "bad.dcm" and how == "ends":
            os.abort()
        if path.name == "bad.dcm":
            np.ones(3 * 2**28)
        return pydicom.dcmread(path)

    decoder.read_dataset = read
    serve(pipe)


serve = decoder._serve
