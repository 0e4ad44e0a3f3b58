"""The speed ledger at tiny size: its alternatives compute the same, its table and record are whole."""

import json

import torch

from mammo_utils.models import ledger


def test_the_alternatives_agree():
    cpu = torch.device("cpu")
    tensors = ledger.inputs(2, 3, 4, 37, cpu)
    outputs = {name: function(*tensors) for name, function in ledger.candidates(cpu).items()}
    assert next(iter(outputs)) == "backend cpu" and len(outputs) == 4
    for y in outputs.values():
        torch.testing.assert_close(y, outputs["backend reference"], rtol=1e-5, atol=1e-6)


def test_peak_memory_of_a_known_allocation():
    cpu = torch.device("cpu")

    def work():
        first = torch.ones(2**18)  # 1 MB
        second = first + 1
        del first
        return second.sum()

    assert 2.0 <= ledger.peak_memory(work, cpu) < 2.1


def test_the_scan_holds_no_array_of_L_D_N():
    """Forward and backward within 8 times the input, at any length; an L x D x N array alone would be 16."""
    cpu = torch.device("cpu")
    for length in (64, 512):
        tensors = ledger.inputs(1, 64, 16, length, cpu)
        name, function = next(iter(ledger.candidates(cpu).items()))
        assert name == "backend cpu"
        peak = ledger.peak_memory(lambda f=function, t=tensors: f(*t).sum().backward(), cpu)
        assert peak * 2**20 < 8 * tensors[0].numel() * 4


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    sizes = ["--lengths", "20", "--batch", "1", "--channels", "4", "--states", "2", "--rounds", "1"]
    ledger.main([*sizes, "--json", str(tmp_path / "ledger.json")])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "ledger.json").read_text())
    for row in record["scans"][0]["rows"] + record["ss2d"][0]["rows"]:
        assert row["name"] in printed and row["forward_backward_ms"] > 0
    assert "torch" in str(record["environment"])
