"""Compressed pixels are decoded in a process of their own: their decoders are C, C++ and Rust, where damaged data may
end the process, never end, or ask for all memory. Here that costs one image, which is set aside with its reason."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock

import numpy as np
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLSLossless, JPEGLSNearLossless, RLELossless

from mammo_utils.data.dicom import read_dataset

# Of processor time for one image, so that a busy machine decides nothing. JPEG 2000, the slowest, took 0.08 µs a pixel
# on a server (pylibjpeg, 16 bits, 13 million pixels); a slow laptop has six times that.
SECONDS, SECONDS_A_PIXEL = 3, 0.5e-6
BYTES = 2**30  # of memory for one image
DEAD = 300  # seconds without an answer, whatever the processor does
# Of the decoders for a syntax the one that raises at damaged data, where gdcm, which pydicom asks first, ends the
# process; of the two for RLE the fast one. JPEG Lossless has gdcm alone.
PLUGINS = {
    RLELossless: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
}


class DecoderError(ValueError):
    """A file's pixels were not decoded; the message is the reason."""


def decompress(path: Path) -> np.ndarray:
    """The stored values (rows, columns) of a compressed DICOM file. Raises DecoderError with the reason."""
    return _child(os.getpid()).decode(Path(path).absolute())


def allowed(pixels: int) -> float:
    """Seconds of processor time that decoding so many pixels may take."""
    return SECONDS + SECONDS_A_PIXEL * pixels


@cache
def _child(process: int) -> _Child:
    return _Child()  # of this process: a fork shares no pipe with its parent


class _Child:
    def __init__(self) -> None:
        self.lock, self.process = Lock(), None

    def start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen here

    def decode(self, path: Path) -> np.ndarray:
        with self.lock:
            if self.process is None or not self.process.is_alive():
                self.start()
            try:
                self.pipe.send_bytes(os.fsencode(path))
                if not self.pipe.poll(DEAD):
                    raise TimeoutError
                answer = json.loads(self.pipe.recv_bytes())
                if "error" in answer:
                    raise DecoderError(f"its pixels cannot be decoded ({answer['error']}); download the file again")
                return np.frombuffer(self.pipe.recv_bytes(), answer["dtype"]).reshape(answer["shape"])
            except (OSError, EOFError):
                self.process.kill()
                self.process.join()
                slow = self.process.exitcode in (-signal.SIGPROF, -signal.SIGKILL)
                what = "took too long to decode" if slow else "ended their decoder"
                raise DecoderError(f"its pixels {what}; download the file again") from None


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a decoder says of its own end, many times
    while True:
        try:
            path = os.fsdecode(pipe.recv_bytes())
        except EOFError:
            return
        values = None
        signal.setitimer(signal.ITIMER_PROF, allowed(0))  # its signal ends the process
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = read_dataset(Path(path))
                signal.setitimer(signal.ITIMER_PROF, allowed(int(dataset.Rows) * int(dataset.Columns)))
                plugin = PLUGINS.get(dataset.file_meta.TransferSyntaxUID, "")
                dataset.pixel_array_options(decoding_plugin=plugin)
                values = np.ascontiguousarray(dataset.pixel_array)
            answer = {"dtype": values.dtype.str, "shape": values.shape}
        except BaseException as error:  # a panic of the decoder for RLE is no Exception
            answer = {"error": type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(json.dumps(answer).encode())
        if values is not None:
            pipe.send_bytes(values.data.cast("B") if values.size else b"")
