"""Compare the results of one study in two folders, bit by bit: ``python -m tests.same_results FOLDER OTHER``.

Made for changes of the code that must not change a number. Compared are the image store, the cohort, the split, each
run's weights, predictions, epochs and metrics, the results tables, and every number that the executed notebooks show in
a table: the data behind the figures. Seconds, dates, commits and hashes of code are left out. A folder written before
files, columns and values were renamed is read by the names of today.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")
COLUMNS = {"fate": "status"}
VALUES = {"set aside": "excluded", "twins": "duplicates"}
LEFT_OUT = {"seconds", "study", "files", "weights"}  # of metrics.json: times, the study's name, hashes of files
NOTEBOOKS = ("01_data_exploration", "02_preprocessing", "05_results", "06_attention", "07_decisions", "08_predict")


def first(folder: Path, *names: str) -> Path:
    """The first of several places that exists."""
    return next(folder / name for name in names if (folder / name).exists())


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a study by name."""
    cohort = first(folder, "cohort", "fates")
    found = {f"cohort {name}": pd.read_parquet(cohort / f"{name}.parquet") for name in ("exams", "images", "breasts")}
    found["store"] = pd.read_parquet(folder / "store" / "index.parquet")
    for run in sorted((folder / "runs").iterdir()):
        found[f"{run.name} predictions"] = pd.read_parquet(run / "predictions.parquet")
        found[f"{run.name} epochs"] = pd.read_csv(run / "epochs.csv").drop(columns="seconds")
    results = pd.read_csv(folder / "results.csv").drop(columns=["stale", "command", "reason"])
    found["results"] = results
    values = json.loads((folder / "results.json").read_text())
    for name in ("comparisons", "shortcuts", "statements"):
        found[name] = pd.DataFrame(values[name]).select_dtypes("number")
    return {name: table.rename(columns=COLUMNS).replace(VALUES) for name, table in found.items()}


def numbers(folder: Path, notebook: str) -> list[list[str]]:
    """The numbers in the tables that an executed notebook shows, one list per cell with any."""
    cells = json.loads((folder / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    shown = []
    for cell in cells:
        pages = ["".join(output.get("data", {}).get("text/html", [])) for output in cell.get("outputs", [])]
        # the list of runs holds minutes and commits
        text = " ".join(
            td for page in pages if "minutes" not in page for td in re.findall(r"<td>(.*?)</td>", page, re.S)
        )
        shown.append(NUMBER.findall(text))
    return list(filter(None, shown))


def compare(one: Path, other: Path) -> list[str]:
    """One line for each thing compared, beginning with "same" or "DIFFERENT"."""
    lines = []

    def note(name: str, same: bool, more: object = "") -> None:
        lines.append(f"{'same' if same else 'DIFFERENT'}: {name} {more}".rstrip())

    stores = [np.load(folder / "store" / "images.npy", mmap_mode="r") for folder in (one, other)]
    note("store images", np.array_equal(*stores), stores[0].shape)
    splits = [json.loads((folder / "split.json").read_text())["exams"] for folder in (one, other)]
    note("split", splits[0] == splits[1], f"{len(splits[0])} exams")
    a, b = tables(one), tables(other)
    for name in sorted(a.keys() | b.keys()):
        same = (
            name in a and name in b and a[name].equals(b[name][list(a[name])] if set(a[name]) <= set(b[name]) else None)
        )
        note(name, same, a[name].shape if name in a else "missing")
    for run in sorted(path.name for path in (one / "runs").iterdir()):
        weights = [load_file(folder / "runs" / run / "weights.safetensors") for folder in (one, other)]
        equal = weights[0].keys() == weights[1].keys()
        equal = equal and all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())
        note(f"{run} weights", equal, f"{len(weights[0])} tensors")
        metrics = [json.loads((folder / "runs" / run / "metrics.json").read_text()) for folder in (one, other)]
        metrics = [{name: value for name, value in found.items() if name not in LEFT_OUT} for found in metrics]
        note(f"{run} metrics", metrics[0] == metrics[1])
    for notebook in NOTEBOOKS:
        a, b = numbers(one, notebook), numbers(other, notebook)
        note(f"tables shown in {notebook}", a == b, f"{sum(map(len, a))} numbers")
    figures = [{path.name: path.read_bytes() for path in (f / "figures").glob("*.png")} for f in (one, other)]
    equal = [name for name, content in figures[0].items() if figures[1].get(name) == content]
    lines.append(f"figures: {len(equal)} of {len(figures[0])} have the same bytes; the others were drawn anew")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.same_results", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a study's folder of results")
    parser.add_argument("other", type=Path)
    options = parser.parse_args()
    lines = compare(options.folder, options.other)
    print("\n".join(lines))
    raise SystemExit(any(line.startswith("DIFFERENT") for line in lines))


if __name__ == "__main__":
    main()
