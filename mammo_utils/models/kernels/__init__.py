"""Kernels of the selective scan: numba on a CPU; Triton and mamba-ssm's on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def announce(what: str, seconds: float = 2.0) -> Iterator[None]:
    """Print one line that names what is compiled if the body of the `with` takes longer than that."""
    timer = threading.Timer(
        seconds, print, [f"Preparing {what}, which is compiled once per machine ..."], {"flush": True}
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def compile_now(signature: Any) -> Callable:
    """Return a decorator that compiles by numba for this signature, cached on disk if a folder is writable."""
    from numba import njit

    options = {"nogil": True, "error_model": "numpy"}  # numba's default makes code for divisions that raise

    def decorate(function: Callable) -> Callable:
        with announce(f"the CPU scan's {function.__name__}"):
            try:
                return njit(signature, cache=True, **options)(function)
            except RuntimeError:  # "no locator available": neither the package nor the home folder is writable
                return njit(signature, **options)(function)

    return decorate


def refuse_second_derivative(ctx: Any, *gradients: Any) -> NoReturn:
    """Raise RuntimeError: the autograd formula of the compiled backwards."""
    raise RuntimeError("A compiled selective scan cannot be differentiated twice; use backend='reference'.")


def refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> NoReturn:
    """Raise ValueError: the batching rule of the compiled scans, which have a batch dimension of their own."""
    raise ValueError("A compiled selective scan cannot be used under vmap; pass a batch, or use backend='reference'.")
