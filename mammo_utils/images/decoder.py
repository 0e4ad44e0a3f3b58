"""Decoding of compressed pixels in a process of its own.

The decoders are written in C, C++ and Rust. Damaged data can crash them, never end, or use up all memory. In a child
process with limits this costs one image, which is excluded with its reason, and not the whole build.
"""

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
from mammo_utils.io import without_main

# Limits for one image. Time is processor time, so that a busy machine excludes nothing. JPEG 2000, the slowest, took
# 0.08 µs per pixel on a server (pylibjpeg, 16 bits, 13 million pixels); the limit is six times that, for slow laptops.
SECONDS, SECONDS_PER_PIXEL = 3, 0.5e-6
MEMORY = 2**30  # bytes
SILENCE = 300  # seconds of real time without an answer, for a decoder that waits and uses no processor time
# The decoders that raise an error on damaged data where gdcm, pydicom's first choice, crashes; of the two for RLE the
# faster one. JPEG Lossless has gdcm only.
PLUGINS = {
    RLELossless: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
}


class DecoderError(ValueError):
    """The pixels of a file could not be decoded; the message is the reason."""


def decompress(path: Path) -> np.ndarray:
    """Decode a compressed DICOM file to stored values (rows, columns). Raises DecoderError with the reason."""
    return _decoder(os.getpid()).decode(Path(path).absolute())


def time_limit(pixels: int) -> float:
    """Return the seconds of processor time allowed for decoding this number of pixels."""
    return SECONDS + SECONDS_PER_PIXEL * pixels


@cache
def _decoder(process: int) -> _Decoder:
    return _Decoder()  # one per process, because a forked process must not share its parent's pipe


class _Decoder:
    def __init__(self) -> None:
        self.lock, self.process = Lock(), None  # one request at a time: a second thread would read the wrong answer

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with without_main():
            self.process.start()
        theirs.close()  # the child then holds the only copy, so that its death ends our recv with EOFError

    def decode(self, path: Path) -> np.ndarray:
        with self.lock:
            if self.process is None or not self.process.is_alive():
                self._start()
            try:
                self.pipe.send_bytes(os.fsencode(path))
                if not self.pipe.poll(SILENCE):
                    raise TimeoutError  # an OSError
                answer = json.loads(self.pipe.recv_bytes())  # no pickles: those of a hijacked decoder run code
                pixels = self.pipe.recv_bytes() if "error" not in answer else b""
            except BaseException as error:  # an interrupt too: its answer would be taken for that to the next request
                self.process.kill()
                self.process.join()
                if not isinstance(error, OSError | EOFError):
                    raise
                slow = self.process.exitcode in (-signal.SIGPROF, -signal.SIGKILL)
                what = "took too long to decode" if slow else "crashed the decoder"
                raise DecoderError(f"its pixels {what}; download the file again") from None
            if "error" in answer:
                raise DecoderError(f"its pixels cannot be decoded ({answer['error']}); download the file again")
            return np.frombuffer(pixels, answer["dtype"]).reshape(answer["shape"])


def _serve(pipe: Connection) -> None:
    """Decode files until the parent closes the pipe: a path comes in, a JSON header and the raw pixels go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C goes to the parent, which closes the pipe
    if sys.platform == "linux":  # the only system with /proc, where the size before decoding is read
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print many lines about one damaged file
    while True:
        try:
            path = os.fsdecode(pipe.recv_bytes())
        except EOFError:
            return
        values = None
        signal.setitimer(signal.ITIMER_PROF, time_limit(0))  # SIGPROF ends the process when the time is used up
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = read_dataset(Path(path))
                signal.setitimer(signal.ITIMER_PROF, time_limit(int(dataset.Rows) * int(dataset.Columns)))
                plugin = PLUGINS.get(dataset.file_meta.TransferSyntaxUID, "")
                dataset.pixel_array_options(decoding_plugin=plugin, correct_unused_bits=False)
                values = np.ascontiguousarray(dataset.pixel_array)
            answer = {"dtype": values.dtype.str, "shape": values.shape}
        except BaseException as error:  # a panic of the Rust decoder for RLE is not an Exception
            answer = {"error": type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(json.dumps(answer).encode())
        if values is not None:
            pipe.send_bytes(values.data.cast("B") if values.size else b"")
