"""Compile the Triton scan without a GPU and record what it takes of one: `python -m benchmarks.gpu_resources`.

Registers and spills are those that ptxas reports. Instructions are counted in the whole kernel, not as they run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mammo_utils.io import write_json

RECORD = Path(__file__).with_name("gpu_resources.json")
TARGETS = (80, 90)  # compute capabilities of an A100 and of an H100 or H200
DTYPES = ("bf16", "fp16", "fp32")  # of u and delta
REGISTERS, WARPS = 65536, 32  # of a multiprocessor; as many programs, each one warp, run on it at most
KERNELS = (
    ("_scan_chunks", {"GRADIENT": False}), ("_scan_chunks", {"GRADIENT": True}), ("_carry_states", {"GRADIENT": False}),
    ("_write_outputs", {}), ("_write_gradients", {}),
)  # fmt: skip
POINTERS = "v A rates D bias path state total y grad dy inner dA drates dD dbias".split()


def main(arguments: list[str] | None = None) -> int:
    """Run the command, which writes the record and prints it as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_resources", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RECORD, help="the record's file")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="types of u and delta")
    a = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("Triton's interpreter does not compile; unset TRITON_INTERPRET.")
    rows = [compile_kernel(*kernel, dtype, target) for target in TARGETS for dtype in a.dtypes for kernel in KERNELS]
    write_json(a.json, {"versions": find_versions(), "kernels": rows})
    for row in rows:
        text = "sm_{target} {dtype} {kernel:22} {registers:4} registers, {spilled} bytes spilled, {warps:2} warps"
        print(text.format(**row))
    return 0


def find_versions() -> dict[str, str]:
    """Return the versions of Triton and of its ptxas."""
    import triton

    return {"triton": triton.__version__, "ptxas": re.search(r"V([\d.]+)", _run("ptxas", "--version").stdout)[1]}


def compile_kernel(name: str, constants: dict[str, bool], dtype: str, target: int) -> dict[str, Any]:
    """Compile a kernel with 16 states, a multiple of `GROUP` steps and 32-bit offsets, as the networks run it.

    Args:
        name: Of the kernel in `triton_kernel`.
        constants: Its own constants.
        dtype: Triton's name of the type of u and delta, and so of du and ddelta.
        target: Compute capability times 10.

    Returns:
        One row of the record.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mammo_utils.models.kernels import triton_kernel as scan

    kernel, types = getattr(scan, name), {}
    label = name + ("" if "GRADIENT" not in constants else ", backward" if constants["GRADIENT"] else ", forward")
    sizes = {"N": 16, "T": scan.STEPS, "G": scan.GROUP, "LANES": scan.LANES} | constants
    constants = {n: value for n, value in sizes.items() if n in kernel.arg_names}
    for n in kernel.arg_names:
        image = n in ("u", "delta", "ddelta") or (n == "v" and not constants["GRADIENT"])
        types[n] = f"*{dtype}" if image else "*i32" if n == "path" else "*fp32" if n in (*POINTERS, "du") else "i32"
    types |= dict.fromkeys(constants, "constexpr")
    even = [n for n, kind in types.items() if kind.startswith("*") or n in ("L", "E") or n[-2:] in ("_b", "_k", "_l")]
    places = {n: (kernel.arg_names.index(n),) for n in kernel.arg_names}
    source = ASTSource(
        kernel, types, {places[n]: value for n, value in constants.items()},
        {places[n]: [["tt.divisibility", 16]] for n in even},  # as torch's arrays lie in memory
    )  # fmt: skip
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": 1})
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(compiled.asm["ptx"])
        architecture = f"sm_{target}a" if target >= 90 else f"sm_{target}"
        report = _run("ptxas", "-v", f"--gpu-name={architecture}", str(ptx), "-o", str(cubin)).stderr
        listing = _run("nvdisasm", str(cubin)).stdout
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w+)", listing)
    registers, spilled = (
        int(re.search(r"Used (\d+) reg", report)[1]),
        int(re.search(r"(\d+) bytes spill st", report)[1]),
    )
    warps = min(WARPS, REGISTERS // (-(-registers // 8) * 8 * 32))  # registers are given in eights
    row = {"kernel": label, "dtype": dtype, "target": target, "registers": registers, "spilled": spilled}
    row |= {"shared": compiled.metadata.shared, "warps": warps, "instructions": len(found)}
    return row | {"exponentials": compiled.asm["ptx"].count("ex2.approx"), "shuffles": found.count("SHFL")}


def _run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the tools of CUDA that Triton brings along."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True)


if __name__ == "__main__":
    sys.exit(main())
