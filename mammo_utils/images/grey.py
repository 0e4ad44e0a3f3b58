"""Grey values: from the words that a DICOM file stores to a scale on which air is one end.

Headers are often wrong about their pixels, so each field is compared with the values. Where both disagree, the values
decide and the image gets a note; CMMD's headers agree with their values. Standard: DICOM PS3.3, C.7.6.3 (image pixel),
C.7.5.1.1.2 (padding), C.8.11.3 (digital X-ray) and C.11.2.1 (window).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi
from scipy import ndimage

from mammo_utils.data.dicom import LARGEST_IMAGE, Refused, read_dataset
from mammo_utils.data.folders import path_below
from mammo_utils.images.decoder import DecoderError, decompress

DEPTHS = (8, 10, 12, 14, 16)  # bits per value of common detectors and scanners
UNREADABLE = "the file cannot be read now"
LEVELS = 64  # an area with more grey values is no padding
DARK = 1 / 8  # of the scale: an image that uses less of it has another scale, or is too dark or too grey to be read


class PixelError(ValueError):
    """An image's pixels cannot be used; the message is the reason for its exclusion."""


@dataclass(frozen=True)
class GreyImage:
    """Grey values with their scale.

    Attributes:
        values: (rows, columns) uint8 or uint16, from 0 to 2^bits - 1.
        bits: Bits of the scale.
        inverted: Whether air is the bright end of the scale.
        note: What in the header contradicts the values and how it was resolved, "" if nothing does.
    """

    values: np.ndarray
    bits: int
    inverted: bool
    note: str = ""

    @property
    def air(self) -> int:
        """The value of air."""
        return 2**self.bits - 1 if self.inverted else 0


def read_pixels(path: Path, window: bool = False) -> GreyImage:
    """Read one greyscale frame, with padding as air.

    Args:
        path: The DICOM file.
        window: Apply the header's VOI LUT or first window. CMMD's window spans the full range and would only bend it.

    Raises:
        PixelError: The pixels cannot be used; the message is the reason.
        MemoryError: There is no memory for them. No other error, whatever the file contains.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_dataset(path)
            return _interpret(_read_words(path, dataset), dataset, window)
    except (PixelError, DecoderError, Refused) as error:
        raise PixelError(str(error)) from None
    except FileNotFoundError:
        raise PixelError("the file is no longer there; restore it, or run notebook 01 again") from None
    except MemoryError:
        raise
    except Exception as error:  # the file is untrusted: whatever is wrong with it must not stop the others
        if isinstance(error, OSError) and error.errno:  # a disk or network that fails, perhaps only now
            raise PixelError(f"{UNREADABLE} ({error.strerror}); run notebook 02 again") from None
        raise PixelError(f"its pixels cannot be decoded ({type(error).__name__}); download the file again") from None


def read_first(folder: Path, images: pd.DataFrame, window: bool = False) -> tuple[pd.Series, GreyImage]:
    """Read the first image that can be used, and print the path and the reason of those before it.

    Args:
        folder: The data folder.
        images: Rows with a `path`.
        window: Whether the header's window is applied.

    Returns:
        Its row, and its grey values.

    Raises:
        PixelError: None of them can be used.
    """
    for _, row in images.iterrows():
        try:
            return row, read_pixels(path_below(folder, row["path"]), window)
        except PixelError as error:
            print(f"not shown: {row['path']}: {error}")
    raise PixelError(f"None of {len(images)} images can be used.")


def rescale(image: GreyImage) -> np.ndarray:
    """Rescale to float32 in [0, 1], 0 for air: value / (2^bits - 1), inverted if air is bright."""
    scaled = image.values.astype(np.float32) / (2**image.bits - 1)
    return 1 - scaled if image.inverted else scaled


def _read_words(path: Path, dataset: pydicom.Dataset) -> np.ndarray:
    """The words (rows, columns) of all allocated bits, uint8 or uint16."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    if rows * columns > LARGEST_IMAGE or frames != 1 or samples != 1:
        raise PixelError(f"{frames} frames of {rows} x {columns} x {samples} are not one greyscale image")
    if (photometric := str(dataset.PhotometricInterpretation)) not in ("MONOCHROME1", "MONOCHROME2"):
        raise PixelError(f"its pixels are {photometric[:20]}, not greyscale")
    bits, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    if allocated > 16 or not 1 <= bits <= allocated:
        raise PixelError(f"{bits} of {allocated} bits a pixel are not a mammogram's")
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        words = decompress(path)
    else:
        dataset.pixel_array_options(correct_unused_bits=False)
        words = dataset.pixel_array
    if words.ndim != 2 or words.dtype.kind not in "iu" or words.itemsize > 2:
        raise PixelError(f"{words.ndim} dimensions of {words.dtype} are not a mammogram")
    words = words.astype(words.dtype.newbyteorder("="), copy=False)
    return words.view(f"u{words.itemsize}")


def _interpret(words: np.ndarray, dataset: pydicom.Dataset, window: bool) -> GreyImage:
    notes: list[str] = []
    bits, signed = min(int(dataset.BitsStored), 8 * words.itemsize), int(dataset.PixelRepresentation) == 1
    words = _unshift(words, bits, _number(dataset, "HighBit"), notes)
    padding = _find_padding(words, bits, signed, dataset, notes)
    values = _extend_sign(words, bits, padding, notes) if signed else words
    if padding is not None:
        values = np.where(padding, values[~padding].min(), values)
    least, most = _find_range(values)
    slope = _number(dataset, "RescaleSlope") or 1
    zero = 0  # what is added to the stored values
    if least < 0:
        seen = _bright_air(values, padding)
        bright = dataset.PhotometricInterpretation == "MONOCHROME1" if seen is None else seen
        intercept = (_number(dataset, "RescaleIntercept") or 0) / slope
        zero, bits = _find_zero(least, most, bits, intercept, bright, notes)
        values, most = values.astype(np.int32) + zero, most + zero
    elif most >= 2**bits:
        values, bits = _fit_bits(values, most, bits, dataset, notes)
        most = _find_range(values)[1]
    elif signed:
        bits -= most < 2 ** (bits - 1)
    if (most < DARK * 2**bits or (signed and not zero)) and _depth(most) < bits:
        notes.append(f"the largest value is {most}, so the {bits}-bit values are read as {_depth(most)} bits")
        bits = _depth(most)
    values = values.astype(np.uint8 if words.itemsize == 1 and bits <= 8 else np.uint16, copy=False)
    inverted = _is_inverted(_bright_air(values, padding), dataset, slope, notes)
    if window:
        values, bits = _apply_window(values, bits, zero, slope < 0, dataset, notes)
    if padding is not None:
        values = np.where(padding, values.dtype.type(2**bits - 1 if inverted else 0), values)
    darkest, brightest = np.percentile(_sample(values), (0.5, 99.5)) / (2**bits - 1)
    darkest, brightest = (1 - brightest, 1 - darkest) if inverted else (darkest, brightest)
    if darkest > DARK or brightest < DARK:
        notes.append(
            f"the picture is {'grey' if darkest > DARK else 'dark'}: {darkest:.0%} to {brightest:.0%} of white"
        )
    return GreyImage(values, bits, inverted, "; ".join(notes))


def _number(dataset: pydicom.Dataset, tag: str) -> float | None:
    """The first value of a tag, None if it has no finite number."""
    value = dataset.get(tag)
    value = value[0] if isinstance(value, pydicom.multival.MultiValue) and value else value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None


def _find_range(values: np.ndarray) -> tuple[int, int]:
    least, most = int(values.min()), int(values.max())
    if least == most:
        raise PixelError(f"every pixel is {least}")
    return least, most


def _depth(largest: int) -> int:
    """The bits of the smallest common scale that holds a value."""
    return next(bits for bits in DEPTHS if largest < 2**bits)


def _sample(values: np.ndarray) -> np.ndarray:
    """At most some 128 x 128 pixels, evenly spread."""
    step = [max(1, size // 64) for size in values.shape]
    return values[:: step[0], :: step[1]]


# --- stored values ------------------------------------------------------------------------------------------


def _unshift(words: np.ndarray, bits: int, high: float | None, notes: list[str]) -> np.ndarray:
    """The words with their lowest stored bit at bit 0."""
    shift = 0 if high is None else int(high) + 1 - bits
    if not shift:
        return words
    if 0 < shift <= 8 * words.itemsize - bits and words.max() >> bits:
        return words >> shift
    notes.append(f"HighBit is {high:g}, but the values are not shifted")
    return words


def _find_padding(
    words: np.ndarray, bits: int, signed: bool, dataset: pydicom.Dataset, notes: list[str]
) -> np.ndarray | None:
    """Mask of the padding pixels, None if there are none."""
    value, limit = (_number(dataset, tag) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return None
    first, last = sorted((int(value), int(value if limit is None else limit)))
    padding = np.zeros(words.shape, bool)
    sizes = {8 * words.itemsize}  # a value written with the wrong sign is the same word
    if signed and -(2 ** (bits - 1)) <= first < 0:
        sizes.add(bits)  # the bits above the stored ones may repeat the sign or be 0
    for size in sizes:
        if -(2 ** (size - 1)) <= first <= last < 2**size:
            padding |= (words - words.dtype.type(first % 2**size) <= last - first) & (words < 2**size)
    if padding.all():
        raise PixelError("every pixel is padding")
    if not padding.any():
        return None
    if len(np.unique(words[padding])) > LEVELS:
        notes.append(f"pixels of the padding's range {first} to {last} show more than padding and are kept")
        return None
    areas, _ = ndimage.label(padding)
    border = np.unique(np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]]))
    if inside := int((padding & ~np.isin(areas, border)).sum()):
        notes.append(f"{inside} pixels inside the picture have the padding's value {first} and are read as air")
    return padding


def _extend_sign(words: np.ndarray, bits: int, padding: np.ndarray | None, notes: list[str]) -> np.ndarray:
    """Signed values; unsigned ones if only these form a smooth picture, whatever the tags are."""
    spare = 8 * words.itemsize - bits
    signed = words.view(f"i{words.itemsize}")
    stored = (signed << spare) >> spare  # bits above the stored ones may repeat the sign or be 0
    step = max(1, len(words) // 256)
    apart = False if padding is None else (padding[::step, 1:] | padding[::step, :-1])

    def count_jumps(values: np.ndarray, scale: int = 0) -> int:
        """Steps to the next pixel over more than half of the scale, as where a value has wrapped round."""
        rows = values[::step].astype(np.int32)
        scale = scale or 1 << int(np.ptp(rows)).bit_length()
        return int(((np.abs(np.diff(rows, axis=1)) > scale / 2) & ~np.asarray(apart)).sum())

    jumps = {"stored": count_jumps(stored, 2**bits), "signed": count_jumps(signed), "words": count_jumps(words)}
    best = min(jumps, key=jumps.__getitem__)
    if jumps[best] >= jumps["stored"] / 2:
        return stored
    values = {"signed": signed, "words": words}[best]
    if values.min() >= 0:
        notes.append("PixelRepresentation is signed, but the values are not")
    return values


def _find_zero(least: int, most: int, bits: int, intercept: float, bright: bool, notes: list[str]) -> tuple[int, int]:
    """What to add to signed values from `least` < 0 to `most`, air the `bright` end or not, and the scale's bits."""
    if 0 <= least + intercept and most + intercept < 2**bits:
        return round(intercept), bits
    half = 2 ** (bits - 1)
    if -half <= least and most < half and most - least >= DARK * 2**bits:
        return half, bits
    notes.append(f"values from {least} to {most} do not fit {bits} signed bits")
    bits = _depth(2 * max(-least, most + 1) - 1)
    if most - least < 2 ** (bits - 1):  # they do not lie around 0, and only air is known to be an end of the scale
        bits = _depth(most - least)
        return (2**bits - 1 - most if bright else -least), bits
    return 2 ** (bits - 1), bits


def _fit_bits(
    values: np.ndarray, most: int, bits: int, dataset: pydicom.Dataset, notes: list[str]
) -> tuple[np.ndarray, int]:
    """Values, of which `most` is the largest and does not fit `bits`, and the bits of their scale."""
    used = int(np.bitwise_or.reduce(values, axis=None))
    overlays = [dataset.get((0x6000 + 2 * number, 0x0102)) for number in range(16)]  # their bit positions
    if any(overlay and overlay.value for overlay in overlays) or not used >> bits & 1:
        return values & (2**bits - 1), bits  # the other bits are an overlay, or lie above a gap: no grey values
    notes.append(f"values up to {most} do not fit BitsStored {bits}")
    return values, _depth(most)


# --- sense and window ---------------------------------------------------------------------------------------


def _is_inverted(seen: bool | None, dataset: pydicom.Dataset, slope: float, notes: list[str]) -> bool:
    """Whether air is the bright end: by the tags, and by the picture (`seen`) where these contradict each other."""
    bright, shape = dataset.PhotometricInterpretation == "MONOCHROME1", str(dataset.get("PresentationLUTShape", ""))
    raw = dataset.get("PresentationIntentType") == "FOR PROCESSING"  # detector counts: most where air was
    tagged = (bright or shape == "INVERSE" or raw) != (slope < 0)
    doubtful = raw or (shape in ("IDENTITY", "INVERSE") and (shape == "INVERSE") != bright)
    if raw:
        notes.append("FOR PROCESSING: detector counts, not processed for display")
    elif doubtful and seen is None:
        notes.append("PresentationLUTShape and PhotometricInterpretation contradict each other")
    if seen is None or seen == tagged:
        return tagged
    if not doubtful:
        notes.append(f"air is {'bright' if seen else 'dark'} in the picture, but not by its tags")
    return seen if doubtful else tagged


def _bright_air(values: np.ndarray, padding: np.ndarray | None) -> bool | None:
    """Whether the most common grey value, that of air, is at the bright end of those used; None if at neither."""
    sample = _sample(values)
    if padding is not None:
        rest = sample[~_sample(padding)]
        sample = rest if rest.size > 0.75 * sample.size else rest[:0]  # all air may be padding
    if sample.size < 256 or sample.min() == sample.max():
        return None
    counts = np.histogram(sample, bins=8)[0]
    return {0: False, 7: True}.get(int(counts.argmax()))


def _apply_window(
    values: np.ndarray, bits: int, zero: int, falling: bool, dataset: pydicom.Dataset, notes: list[str]
) -> tuple[np.ndarray, int]:
    """The values after the header's VOI LUT or first window, in 16 bits; unchanged without a useful one."""
    inputs = apply_modality_lut(np.arange(2**bits) - zero, dataset)
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if dataset.get("VOILUTSequence"):
        outputs = apply_voi(np.rint(inputs).astype(np.int32), dataset)
        outputs = outputs / (2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif centre is not None and width is not None and width > 0:
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        if function == "SIGMOID":
            outputs = 1 / (1 + np.exp(-4 * (inputs - centre) / width))
        elif function == "LINEAR_EXACT":
            outputs = (inputs - centre) / width + 0.5
        else:
            outputs = (inputs - centre + 0.5) / max(width - 1, 1e-6) + 0.5
    else:
        notes.append("its header has no window")
        return values, bits
    outputs = np.rint(65535 * np.clip(outputs, 0, 1)).astype(np.uint16)
    windowed = (65535 - outputs if falling else outputs)[values]
    if windowed.min() == windowed.max():
        notes.append("its header's window makes all pixels equal, so it is not applied")
        return values, bits
    return windowed, 16
