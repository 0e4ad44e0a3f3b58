"""Thousands of damaged inputs: `python -m tests.fuzz --n 10000 --seed 0 --workers 2`.

Each input is one file of a small intact release, damaged at random: its bytes, its DICOM tags, the values of its JSON,
the cells or zipped parts of its workbook, the fields of its csv. The release is read and a damaged image is prepared.
Each input must be read, listed with its reason or refused in one sentence, within 5 seconds and 1 GB and without any
other error, and the images found must be those on disk.
"""

import argparse
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from mammo_utils.data.cohort import DataError
from mammo_utils.data.exclusions import exclusion_flow
from mammo_utils.data.sources import read_cohort
from mammo_utils.images.preprocess import PixelError, prepare_image
from mammo_utils.io import exit_with_parent
from tests.images.test_syntaxes import jpeg_lossless, picture
from tests.release_builder import BREASTS, build_release

LONGEST, LARGEST = 5.0, 1024.0  # seconds, megabytes
NUMBERS = (0, -1, 1, 7, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, "", "x", None, 1.5)
TAGS = (
    "Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel",
    "PixelRepresentation", "PhotometricInterpretation", "ImageLaterality", "Laterality", "PatientOrientation",
    "ViewPosition", "ViewCodeSequence", "PatientID", "SOPInstanceUID", "PixelData", "Manufacturer",
)  # fmt: skip
VALUES = (
    None,
    True,
    "",
    "x",
    "x" * 10**6,
    float("nan"),
    float("inf"),
    -1,
    1e308,
    10**400,
    [],
    {},
    [[]],
    "\u200b",
    "\0",
)


class TooSlow(Exception):
    """An input takes longer than LONGEST."""


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    data, kind = bytearray(data), draw.randrange(6)
    start = draw.randrange(len(data) + 1)
    if kind == 0:
        for _ in range(draw.randint(1, 20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start:start] = draw.randbytes(draw.choice((1, 2, 8, 300)))
    elif kind == 3:
        data[start : start + draw.choice((1, 4, 100))] = b""
    elif kind == 4:
        data[start : start + 4] = draw.choice(
            (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xfe\xff\x0d\xe0")
        )
    else:
        data[start:start] = data[start : start + 400]
    return bytes(data)


def damage_dicom(data: bytes, draw: random.Random) -> bytes:
    chance, pixels = draw.random(), data.rfind(b"\xe0\x7f\x10\x00")
    if chance < 0.4:
        return data[:pixels] + damage_bytes(data[pixels:], draw)
    if chance < 0.7:
        return damage_bytes(data, draw)
    dataset, target = pydicom.dcmread(io.BytesIO(data)), io.BytesIO()
    try:
        for _ in range(draw.randint(1, 3)):
            change_tag(dataset, draw)
        dataset.save_as(target)
    except Exception:  # pydicom cannot write this, so damage the bytes
        return damage_bytes(data, draw)
    return target.getvalue()


def change_tag(dataset: Dataset, draw: random.Random) -> None:
    tag = draw.choice(TAGS)
    if draw.random() < 0.3:
        dataset.pop(tag, None)
    elif tag == "PixelData":
        dataset.PixelData = draw.randbytes(2 * draw.randrange(400))
    elif tag == "ViewCodeSequence":
        inner = Dataset()
        for _ in range(draw.choice((0, 1, 50))):
            outer = Dataset()
            outer.ViewCodeSequence = Sequence([inner])
            inner = outer
        dataset.ViewCodeSequence = Sequence([inner])
    else:
        value = draw.choice((*NUMBERS, "L\\R", "A" * 10**5, "\u200b"))
        dataset[tag] = pydicom.DataElement(tag, draw.choice(("US", "UL", "LO", "CS", "IS")), value)


def damage_json(data: bytes, draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.4:
        return damage_bytes(data, draw)
    if kind < 0.45:
        return b"[" * draw.choice((10, 10**5)) + b"]" * draw.choice((0, 10))
    values = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        node, key = values, draw.randrange(len(values))
        while isinstance(node[key], list | dict) and node[key] and draw.random() < 0.8:
            node = node[key]
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        node[key] = draw.choice(VALUES)
    return json.dumps(values).encode()


def damage_workbook(data: bytes, draw: random.Random) -> bytes:
    """Damage or blow up one part of the zip file, or damage its bytes."""
    if draw.random() < 0.3:
        return damage_bytes(data, draw)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([n for n in parts if n.startswith("xl/")])
    if draw.random() < 0.02:
        parts[name] += b" " * 400 * 2**20
    elif draw.random() < 0.5 and b"<v>" in parts[name]:
        cells = parts[name].split(b"<v>")
        chosen = draw.randrange(1, len(cells))
        value = draw.choice((b"", b"x", b"-1", b"1e999", b"99999999999", b"9" * 10**5, b"nan"))
        cells[chosen] = value + b"</v>" + cells[chosen].partition(b"</v>")[2]
        parts[name] = b"<v>".join(cells)
    else:
        parts[name] = damage_bytes(parts[name], draw)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    return target.getvalue()


def damage_csv(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return damage_bytes(data, draw)
    rows = [line.split(b",") for line in data.splitlines()]
    for _ in range(draw.randint(1, 4)):
        row = draw.choice(rows)
        row[draw.randrange(len(row))] = draw.choice(
            (b"", b"x", b"-1", b"nan", b'"', b"\xff", b"\0", b"9" * 10**6, b",,,")
        )
    return b"\n".join(b",".join(row) for row in rows)


SYNTAXES = (
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    None,
)  # None: JPEG Lossless; a third of the files stays uncompressed
KINDS = {"dicom": damage_dicom, "json": damage_json, "workbook": damage_workbook, "csv": damage_csv}
SHARES = (0.55, 0.2, 0.15, 0.1)
PATTERNS = {"dicom": "*.dcm", "json": "TOMPEI-CMMD_v01*/[!.]*.json", "workbook": "*.xlsx", "csv": "*.csv"}


def build_folder(folder: Path) -> Path:
    build_release(folder)
    lines = ["ID1,LeftRight,Age,number,abnormality,classification,subtype"]
    lines += [f"{b[0]},{b[1]},50,2,mass,{b[3]}," for b in BREASTS if b[3] in ("Benign", "Malignant")]
    (folder / "CMMD_clinicaldata_revision.csv").write_text("\n".join(lines) + "\n")
    for path, syntax in zip(sorted(folder.rglob("*.dcm")), SYNTAXES * 2, strict=False):
        dataset, values = pydicom.dcmread(path), picture(np.uint8)
        (dataset.Rows, dataset.Columns), dataset.PixelData = values.shape, values.tobytes()
        dataset.compress(syntax) if syntax else jpeg_lossless(dataset)
        dataset.save_as(path)
    return folder


def try_input(folder: Path, number: int, seed: int) -> tuple[str, str, float]:
    """Damage one file, read it, restore it. Returns kind, outcome ("wrong: …" is a violation) and seconds."""
    draw = random.Random(f"{seed} {number}")
    kind = draw.choices(list(KINDS), SHARES)[0]
    path = draw.choice(sorted(folder.rglob(PATTERNS[kind])))
    good = path.read_bytes()
    path.write_bytes(KINDS[kind](good, draw))
    workbook = next(folder.glob("*.xlsx"))
    hidden = kind == "csv" and draw.random() < 0.5  # then only the csv has the labels
    if hidden:
        workbook.rename(workbook.with_suffix(".away"))
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        outcome = read_folder(folder, path, kind)
    except TooSlow:
        outcome = "wrong: it hangs"
    except Exception:
        outcome = "wrong: " + traceback.format_exc(limit=-3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        path.write_bytes(good)
        if hidden:
            workbook.with_suffix(".away").rename(workbook)
    return kind, outcome, time.perf_counter() - start


def read_folder(folder: Path, path: Path, kind: str) -> str:
    try:
        cohort = read_cohort("cmmd", folder)
    except DataError as error:
        return "refused" if len(str(error)) < 1000 and str(error).strip() else f"wrong: a poor sentence: {error!r:.200}"
    rows = exclusion_flow(cohort)
    if rows.at[0, "images"] != len(list(folder.rglob("*.dcm"))):
        return f"wrong: {rows.at[0, 'images']} images found, {len(list(folder.rglob('*.dcm')))} on disk"
    name = path.relative_to(folder).as_posix()
    listed = cohort.excluded["what"].eq(name).any() or cohort.excluded["what"].eq(path.name).any()
    if kind == "dicom":
        row = cohort.images[cohort.images["path"] == name]
        if not len(row):
            return "listed" if listed else "wrong: an image is neither used nor listed"
        try:
            prepare_image(path, "L", 16)
        except PixelError as error:
            return "listed" if str(error) else "wrong: no reason"
        return "read" if (row["status"] == "used").all() else "listed"
    if kind == "json" and not listed and not len(cohort.lesions):
        return "wrong: a damaged file took the lesions of others with it"
    return "listed" if listed else "read"


def try_inputs(job: tuple[int, int, int]) -> dict:
    """Try every stride-th input from `first` to `stop`, in a folder of its own."""
    first, stop, stride, seed = job
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TooSlow()))
    warnings.simplefilter("ignore")
    folder = build_folder(Path(tempfile.mkdtemp()))
    counts, wrong, slowest = {}, [], 0.0
    try:
        try_input(folder, -1, seed)  # modules are loaded at first use
        for number in range(first, stop, stride):
            kind, outcome, seconds = try_input(folder, number, seed)
            slowest = max(slowest, seconds)
            if outcome.startswith("wrong"):
                wrong.append((number, kind, outcome))
                outcome = "wrong"
            counts[kind, outcome] = counts.get((kind, outcome), 0) + 1
    finally:
        shutil.rmtree(folder)
    return {"counts": counts, "wrong": wrong, "slowest": slowest, "memory": peak_memory()}


def peak_memory() -> float:
    """Return the peak resident memory of this process in MB.

    On Linux ru_maxrss includes the process that started this one, so the own memory map is read instead.
    """
    if sys.platform == "linux":
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fuzz(n: int, seed: int, workers: int) -> dict:
    """Try `n` inputs. Returns counts {(kind, outcome): number}, wrong, slowest (seconds) and memory (MB)."""
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=exit_with_parent) as pool:
        found = list(pool.map(try_inputs, [(first, n, workers, seed) for first in range(workers)]))
    counts: dict = {}
    for part in found:
        for key, number in part["counts"].items():
            counts[key] = counts.get(key, 0) + number
    return {
        "counts": dict(sorted(counts.items())),
        "wrong": sorted(w for part in found for w in part["wrong"]),
        "slowest": max(part["slowest"] for part in found),
        "memory": max(part["memory"] for part in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    found = fuzz(a.n, a.seed, a.workers)
    for number, kind, why in found["wrong"][:20]:
        print(f"seed {a.seed}, input {number}, {kind}: {why}")
    parts = ", ".join(f"{kind} {outcome} {number}" for (kind, outcome), number in found["counts"].items())
    print(
        f"{a.n} inputs, seed {a.seed}: {parts}; slowest {found['slowest']:.1f} s, peak memory {found['memory']:.0f} MB"
    )
    sys.exit(bool(found["wrong"]) or found["slowest"] > LONGEST or found["memory"] > LARGEST)


if __name__ == "__main__":
    main()
