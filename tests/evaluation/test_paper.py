"""The paper's values as data: unchanged, and empty where our copy is unreadable."""

import pandas as pd
import pytest

from mammo_utils.evaluation.paper import FILE, KEY, paper_layout, paper_values
from mammo_utils.evaluation.tables import RESULT_COLUMNS
from mammo_utils.metrics import METRICS
from mammo_utils.vocabulary import SYSTEMS
from tests.conftest import SHARED


def test_the_copy_equals_its_source():
    source = SHARED / "paper" / "tables_2_3_4.csv"
    if not source.is_file():
        pytest.skip("the paper's tables are not beside this checkout")
    assert FILE.read_bytes() == source.read_bytes()


def test_each_cell_of_the_three_tables_occurs_once():
    table = paper_values()
    assert len(table) == 3 * 6 * 8 and not table.duplicated(KEY).any()
    assert table["value"].between(0, 1).sum() + table["value"].isna().sum() == 144
    missing = table[table["value"].isna()]
    assert len(missing) == 8 and (missing["note"] == "unreadable in our copy").all()


def test_numbers_that_the_paper_states_in_its_text():
    """Abstract: 0.9967 and 0.9830 (1 vs. 5), 0.7790 (ternary), 0.4904 (five classes)."""
    value = paper_values().set_index(KEY)["value"]
    assert value["1v5", "hybrid_shared", "multi", "birads", "auc"] == 0.9967
    assert value["1v5", "hybrid_shared", "multi", "birads", "f1_macro"] == 0.9830
    assert value["1v3v5", "hybrid_shared", "multi", "birads", "f1_macro"] == 0.7790
    birads = value[:, :, :, "birads", "f1_macro"].loc["1to5"]
    assert birads.max() == 0.4904


@pytest.mark.parametrize("subset", ["1v5", "1v3v5", "1to5"])
def test_the_layout_is_the_papers_and_an_empty_cell_stays_empty(subset):
    tables = [paper_layout(subset, pd.DataFrame(columns=RESULT_COLUMNS), metric) for metric in METRICS]
    rows = [(entry.title, mode) for entry in SYSTEMS.values() for mode in ("both tasks", "each task alone")]
    assert all(list(table.index) == rows and table.shape == (12, 4) for table in tables)
    measured, printed = (pd.concat(table.filter(like=of) for table in tables) for of in ("this study", "paper"))
    assert (measured == "").all(axis=None)
    assert (printed == "").sum().sum() == (8 if subset == "1v5" else 0)


def test_a_cell_of_the_layout_is_that_of_its_system_task_and_mode():
    layout = paper_layout("1v5", pd.DataFrame(columns=RESULT_COLUMNS), "auc")
    value = paper_values().set_index(KEY)["value"]
    for mode, trained in (("multi", "both tasks"), ("birads", "each task alone")):
        found = layout.at[("ResNet-18", trained), "BI-RADS, paper"]
        assert found == f"{value['1v5', 'resnet18', mode, 'birads', 'auc']:.4f}"
