"""The compiled scans as operators of torch: compilation, its first use, and what they refuse."""

import os
import subprocess
import sys
import time

import pytest
import torch

from mammo_utils.models.kernels import announce
from mammo_utils.models.kernels.cpu import BACKWARD, SCAN
from mammo_utils.models.selective_scan import selective_scan
from mammo_utils.models.ss2d import SS2D

FIRST_USE = """
import time, torch, numba
begin = time.process_time()
from mammo_utils.models.selective_scan import selective_scan
u = torch.randn(1, 4, 6, requires_grad=True)
B, C = torch.randn(2, 1, 2, 6)
selective_scan(u, u.abs(), -torch.rand(4, 2), B, C, backend="cpu").sum().backward()
print(time.process_time() - begin)
"""


def operands(**options):
    """Arguments of the operator: two paths over six pixels."""
    shapes = [(1, 1, 6, 3), (1, 2, 6, 3), (2, 2, 3), (1, 2, 6, 2), (1, 2, 6, 2)]
    u, delta, A, B, C = (torch.randn(shape, **options) for shape in shapes)
    path = torch.arange(6)
    return u, delta, A, B, C, None, torch.randn(2, 3, **options), None, True, torch.stack([path, path.flip(0)])


def test_the_operators_have_fakes_and_a_formula_that_fit():
    """torch's own checks: schema, fake tensors, autograd, and compilation with symbolic sizes."""
    scan, backward = (getattr(torch.ops.mammo_utils, name.split("::")[1]).default for name in (SCAN, BACKWARD))
    found = torch.library.opcheck(scan, operands(requires_grad=True))
    assert set(found.values()) == {"SUCCESS"}
    values = operands()
    y, last, start = scan(*values)
    found = torch.library.opcheck(backward, (*values, start, y, last), test_utils=("test_schema", "test_faketensor"))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_compiled_ss2d(backend):
    """One graph without a break, the same values and gradients; symbolic sizes; and an export."""
    torch.manual_seed(0)
    module = SS2D(8, states=4, backend=backend)

    def run(function, image):
        module.zero_grad()
        y = function(image)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in module.parameters())]

    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=backend == "cpu")
    for batch, height, width in ((2, 3, 4), (1, 5, 2)):
        image = torch.randn(batch, height, width, 8)
        for found, expected in zip(run(compiled, image), run(module, image), strict=True):
            torch.testing.assert_close(found, expected)
    explained = torch._dynamo.explain(module)(image)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    exported = torch.export.export(module, (image,)).module()
    torch.testing.assert_close(exported(image), module(image))


def test_what_a_compiled_scan_refuses():
    u = torch.randn(2, 1, 4, 6, requires_grad=True)
    rest = u[0].abs().detach(), -torch.rand(4, 2), torch.randn(1, 2, 6), torch.randn(1, 2, 6)
    with pytest.raises(ValueError, match="cannot be used under vmap; pass a batch"):
        torch.vmap(lambda x: selective_scan(x, *rest, backend="cpu"))(u)
    y = selective_scan(u[0], *rest, backend="cpu")
    (gradient,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice; use backend='reference'"):
        gradient.sum().backward()


def test_first_use_is_short_and_announced(tmp_path):
    """From an empty cache: seconds of processor time, megabytes on disk, and lines for what takes over 2 seconds."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", FIRST_USE], env=environment, capture_output=True, text=True, check=True)
    *announced, seconds = run.stdout.splitlines()
    assert float(seconds) < 20
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.*")) < 10_000_000
    assert all(line.startswith("Preparing the CPU scan's ") for line in announced)


def test_what_takes_long_is_announced_once(capsys):
    with announce("a kernel", seconds=0.05):
        time.sleep(0.3)
    with announce("another", seconds=0.3):
        pass
    time.sleep(0.4)
    assert capsys.readouterr().out == "Preparing a kernel, which is compiled once per machine ...\n"
