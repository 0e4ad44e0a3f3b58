"""The certificate of a study: what its numbers rest on, and how far a second study has the same ones.

It compares two finished studies. To repeat one, run `snakemake` on another machine or under another name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mammo_utils.evaluation.runs import RunResult
from mammo_utils.evaluation.tables import KEY_COLUMNS
from mammo_utils.io import display_path, plain_values, read_json
from mammo_utils.prepared import RECORD
from mammo_utils.provenance import file_hash, hash_of
from mammo_utils.study import FREE, Study, flatten
from mammo_utils.workflow.study_state import outcomes

KEY = [*KEY_COLUMNS, "metric", "side"]
VALUES = "part value low high n_by_class patients_by_class n_seeds".split()
PREPARED = ("cohort", "store", "split")  # hashes that notebook 02 recorded
TRAINED = ("code", "commit", "lock", "cpu", "device")  # what each run's environment.json has
ABSENT = "not recorded"


def certify(study: Study, runs: Sequence[RunResult], results: pd.DataFrame) -> dict[str, Any]:
    """Collect what the study's numbers rest on, from its files as they are now.

    Args:
        study: The study.
        runs: Its runs.
        results: The result of `tables.results_table`.

    Returns:
        `facts`: hashes of the settings, the prepared data and the training code, the commit, the hash of the lock file,
        the vector instructions of the CPU and the device, each a list of the values that occur; `seconds` of each step;
        `predictions`, the SHA-256 of each finished run's; `results`, the values with their intervals.
    """
    settings = flatten(study.model_dump(mode="json"))
    facts = {"settings": [hash_of({k: v for k, v in settings.items() if k not in (*FREE, "name")})]}
    prepared = study.folder / RECORD
    recorded = read_json(prepared) if prepared.is_file() else {}
    facts |= {name: [recorded.get(name, ABSENT)] for name in PREPARED}
    finished = [run for run in runs if run.finished]
    facts |= {name: sorted({run.environment.get(name) or ABSENT for run in finished}) for name in TRAINED}
    return plain_values(
        {
            "study": study.name,
            "synthetic": any(run.metrics["synthetic"] for run in finished),
            "facts": facts,
            "seconds": {step: found["seconds"] for step, found in outcomes(study).items() if "seconds" in found},
            "predictions": {run.id: file_hash(run.spec.folder / "predictions.parquet") for run in finished},
            "results": results[[*KEY, *VALUES]].to_dict("records"),
        }
    )


def read_certificate(path: Path) -> dict[str, Any]:
    """Read a certificate. Raises ValueError, naming the file, if it is missing or no certificate."""
    if not path.is_file():
        raise ValueError(f"There is no file {display_path(path)}; name the certificate.json of a finished study.")
    found = read_json(path)
    try:
        if all(isinstance(value, list) for value in found["facts"].values()):
            values = {tuple(str(row[name]) for name in KEY): row["value"] for row in found["results"]}
            found["results"] = {key: None if value is None else float(value) for key, value in values.items()}
            return found | {"predictions": dict(found["predictions"])}
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{display_path(path)} is no certificate; name the certificate.json of a finished study.")


def compare_certificates(here: dict[str, Any], there: dict[str, Any]) -> tuple[list[str], bool]:
    """Compare the numbers of two studies, and what they rest on.

    Args:
        here: A certificate, as `certify` returns it.
        there: Another one, as `read_certificate` returns it.

    Returns:
        Lines to print, and whether all predictions have the same bytes and all results the same values.
    """
    lines = []
    for name in here["facts"]:
        ours, theirs = (found["facts"].get(name, [ABSENT]) for found in (here, there))
        short = [", ".join(str(value)[:12] for value in values) or ABSENT for values in (ours, theirs)]
        lines.append(f"{name}: same" if ours == theirs else f"{name}: {short[0]} here, {short[1]} there")
    ours, theirs = here["predictions"], there["predictions"]
    same = [run for run in ours if ours[run] == theirs.get(run)]
    every = sorted(ours.keys() | theirs.keys())
    lines.append(f"predictions: the same bytes in {len(same)} of {len(every)} runs")
    for run in every:
        if run not in same:
            lines.append(f"  {run}: " + ("differ" if run in ours and run in theirs else "only in one of the studies"))
    values = {tuple(str(row[name]) for name in KEY): row["value"] for row in here["results"]}
    equal = len(same) == len(every) > 0 and values == there["results"]
    for metric in dict.fromkeys(key[KEY.index("metric")] for key in values):
        own = [key for key in values if key[KEY.index("metric")] == metric]
        gaps = {
            key: abs(values[key] - there["results"][key])
            for key in own
            if None not in (values[key], there["results"].get(key))
        }
        worst = max(gaps, key=gaps.__getitem__, default=None)
        text = f"largest difference {gaps[worst]:.3g} ({' '.join(worst)})" if worst else "nothing to compare"
        lines.append(f"{metric}: {text}; {len(gaps)} of {len(own)} values compared")
    lines.append("The predictions and the results are the same." if equal else "The two studies differ.")
    return lines, equal
