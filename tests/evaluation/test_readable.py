"""Tables and sentences for readers have names, intervals and no ids."""

import numpy as np
import pandas as pd
import pytest

from mammo_utils.evaluation.readable import Folded, name_rows, readable, widen, write_range
from mammo_utils.evaluation.runs import run_title


@pytest.mark.parametrize(
    "values",
    [
        ("hybrid_shared", "multi", "1v5", 0),
        ("vssm_shared", "birads", "1to5", 2, 6),
        ("vssm_shared", "diagnosis", "1v3v5", 1, 0, ["model.fusion=per_breast", "training.recombine=0.5"]),
        ("hybrid_shared", "multi", "1v5", 0, 0, ["training.learning_rate.resnet18=1e-4"]),
        ("vssm_view_specific", "multi", "1v5", 0, 4, [], 1),
    ],
)
def test_a_run_has_the_same_name_by_its_id_as_by_its_settings(fake_study, values):
    spec = fake_study.run(*values)
    assert run_title(spec.id) == spec.title
    assert run_title("not-a-run") == "not-a-run" and run_title("lenet-multi-1v5-seed0") == "lenet-multi-1v5-seed0"


def test_measures_are_written_with_their_intervals_and_ids_as_names():
    table = pd.DataFrame({"system": ["resnet18", "hybrid_shared"], "x": [0.5, np.nan], "x_low": [0.25, np.nan]})
    table = table.assign(x_high=[1.0, np.nan], n=[2, 1200], p_bh=[0.0001, 0.04], ok=[True, None], task_mode="multi")
    written = readable(table, ["system"], {"x": "measure", "n": "n", "p_bh": "p", "ok": "ok", "z": "absent"})
    assert written.index.name == "system" and list(written.columns) == ["measure", "n", "p", "ok"]
    assert written.loc["ResNet-18"].tolist() == ["0.500 (0.250 to 1.000)", "2", "< 0.001", "yes"]
    assert written.loc["Hybrid (Shared)"].tolist() == ["", "1,200", "0.040", ""]
    assert readable(table, ["system", "task_mode"], ["n"]).index.names == ["system", "trained on"]
    bare = pd.DataFrame({"run": ["resnet18-multi-1v5-seed0"], "value": [0.9], "low": [0.8], "high": [1.0]})
    assert readable(bare, ["run"], ["value"]).to_dict("index") == {
        "ResNet-18, both tasks, BI-RADS 1 vs 5, seed 0": {"value": "0.900 (0.800 to 1.000)"}
    }
    sizes = pd.DataFrame({"run": list("abcdef"), "x": [-0.5, 1.0, 1.234, -12.34, 146.974, 12345.6]})
    assert readable(sizes, ["run"], ["x"])["x"].tolist() == ["-0.500", "1.000", "1.23", "-12.3", "147", "12,346"]
    assert not len(readable(pd.DataFrame(), ["run"], ["value"])) and not len(readable(table[:0], ["system"], ["x"]))


def test_a_training_is_named_by_its_columns_as_by_its_id():
    row = {"subset": "1v5", "system": "hybrid_shared", "task_mode": "multi", "seed": 0}
    assert name_rows(pd.DataFrame([row]))["training"].item() == run_title("hybrid_shared-multi-1v5-seed0")
    assert list(name_rows(pd.DataFrame(columns=list(row)))["training"]) == []
    row.pop("seed")
    assert name_rows(pd.DataFrame([row]))["named"].item() == "Hybrid (Shared), both tasks, BI-RADS 1 vs 5"


def test_a_wide_table_keeps_the_order_and_each_value_in_its_place():
    """`unstack(sort=False)` of pandas 2.3 puts values into wrong cells here."""
    pairs = [(name, task) for name in ("z", "a", "m") for task in ("diagnosis", "birads")]
    table = pd.DataFrame(pairs, columns=["baseline", "task"]).assign(value=np.arange(6))
    wide = widen(table[:-1].sort_values("task", ascending=False, kind="stable"), ["baseline"], "task", "value")
    assert wide.reset_index().to_numpy().tolist() == [["z", "0", "1"], ["a", "2", "3"], ["m", "4", ""]]
    assert list(wide) == ["Diagnosis", "BI-RADS"] and widen(table[:0], ["baseline"], "task", "value").empty


def test_a_range_of_one_value_is_that_value():
    assert write_range(pd.Series([0.5, 0.25, 1.0]), ".0%") == "25% to 100%"
    assert write_range(pd.Series([0.251, 0.249]), ".0%") == "25%"


def test_further_rows_are_folded_below_the_table():
    table = pd.DataFrame({"a": [1, 2]})
    html = Folded(table[:1], table, "All 2 rows <here>")._repr_html_()
    assert html.count("<table") == 2 and "<summary>All 2 rows &lt;here&gt;</summary>" in html
    assert "<details>" not in Folded(table, table[:0], "")._repr_html_()
