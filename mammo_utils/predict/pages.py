"""The files of a prediction: a table, the same as JSON with codes, and one page per exam with its pictures.

The codes are SNOMED CT's for breasts (DICOM CID 6022), views (CID 4014) and BI-RADS categories (CID 6027); the names of
the concepts are DICOM's, as in a mammography CAD report (PS3.16, TID 4000). The JSON is no DICOM object.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mammo_utils.evaluation.conformal import ALPHA
from mammo_utils.evaluation.view_ablation import ExamPrediction
from mammo_utils.io import write_json, write_text
from mammo_utils.plots.attention import draw_prediction
from mammo_utils.predict.model import Card
from mammo_utils.predict.table import PREDICTED
from mammo_utils.training.dataset import ExamSet
from mammo_utils.vocabulary import VIEW_TITLES, VIEWS

CODES = {
    "L": ("80248007", "SCT", "Left breast"),
    "R": ("73056007", "SCT", "Right breast"),
    "CC": ("399162004", "SCT", "cranio-caudal"),
    "MLO": ("399368009", "SCT", "medio-lateral oblique"),
    "1": ("397140005", "SCT", "1 - Negative"),
    "2": ("397141009", "SCT", "2 - Benign"),
    "3": ("397143007", "SCT", "3 - Probably Benign"),
    "4": ("397144001", "SCT", "4 - Suspicious"),
    "5": ("397145000", "SCT", "5 - Highly suggestive of malignancy"),
    "cancer": ("111047", "DCM", "Probability of cancer"),
    "category": ("111005", "DCM", "Assessment Category"),
    "percent": ("%", "UCUM", "Percent"),
}
CODES = {name: dict(zip(("value", "scheme", "meaning"), code, strict=True)) for name, code in CODES.items()}
CAPTION = "The views as the model receives them, weights α, contributions to the log-odds; probabilities as trained"
STYLE = """:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
.mark { background: #fff3cd; color: #222; border-left: 4px solid #e0a800; padding: .5rem 1rem; margin: 1rem 0; }
img { width: 100%; background: #fff; } main { overflow-x: auto; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; }"""


def write_results(
    out: Path, card: Card, inputs: ExamSet, predictions: Sequence[ExamPrediction], table: pd.DataFrame
) -> None:
    """Write `predictions.csv`, `predictions.json`, `index.html` and one page per exam.

    Args:
        out: The folder.
        card: The model's card.
        inputs: The exams that were predicted.
        predictions: What was predicted for each of them, as trained.
        table: What `predict` returns.
    """
    facts, unread = {"runs": [m.run.id for m in card.members], "statements": card.statements}, table.attrs["unread"]
    marks = f'<div class="mark">{"<br>".join(map(escape, card.statements))}</div>'
    places, links, coded = dict(zip(inputs.names, range(len(inputs)), strict=True)), "", []
    for number, (exam, breasts) in enumerate(table.groupby("exam"), 1):
        rows, name = breasts.to_dict("records"), f"{number:03d}-{re.sub('[^A-Za-z0-9_-]', '_', exam)[:60]}.html"
        unlike = rows[0]["unlike_training"]
        coded.append({"exam": exam, "unlike_training": unlike, "breasts": [_coded(row) for row in rows]})
        lines = "".join(f"<li>{escape(summarise(row))}</li>" for row in rows)
        page = f"<h1>{escape(exam)}</h1>{marks}<ul>{lines}</ul>"
        page += f'<div class="mark"><b>Unlike the training data:</b> {escape(unlike)}.</div>' if unlike else ""
        if exam in places:
            page += _picture(inputs, places[exam], predictions[places[exam]], rows[0]["notice"])
        page += (
            breasts.set_index("side").drop(columns=["exam", "unlike_training", "notice"]).T.to_html(na_rep="", border=0)
        )
        write_text(out / name, _page(exam, page))
        links += f'<li><a href="{name}">{escape(exam)}</a><ul>{lines}</ul></li>'
    rest = "".join(f"<li>{escape(r['what'])}: {escape(r['reason'])}</li>" for r in unread if r["kind"] != "exam")
    body = f"<h1>{len(coded)} exams</h1>{marks}<ul>{links}</ul><h2>Not used</h2><ul>{rest or '<li>nothing</li>'}</ul>"
    write_text(out / "index.html", _page("Predictions", body))
    write_json(out / "predictions.json", {"model": facts, "exams": coded, "not_used": unread})
    write_text(out / "predictions.csv", table.to_csv(index=False))


def summarise(row: dict[str, Any]) -> str:
    """Summarise a row of `predict` as a clause."""
    found = [f"{'left' if row['side'] == 'L' else 'right'} breast: {row['status']}"]
    if row["status"] != PREDICTED:
        return f"{found[0]}, {row['reason']}"
    if "malignant_p" in row:
        calibrated = not np.isnan(row["malignant_p_calibrated"])
        found.append(f"P(malignant) {row['malignant_p_calibrated' if calibrated else 'malignant_p']:.3f}")
        found[-1] += "" if calibrated else " (not calibrated)"
    if "birads_set" in row:
        shares = {name.removeprefix("birads_p"): p for name, p in row.items() if name.startswith("birads_p")}
        found.append(f"BI-RADS {max(shares, key=shares.get)} (P {max(shares.values()):.3f}")
        found[-1] += f", {1 - ALPHA:.0%} set: {row['birads_set'].replace(' ', ', ') or 'none'})"
    return ", ".join(found)


def _coded(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `predict` with codes."""
    side, percent = row["side"], {"unit": CODES["percent"]}
    views = [CODES[view[2:]] for view in VIEWS if view[0] == side and row.get(f"present_{view}") is True]
    found = {"breast": CODES[side], "views": views, "status": row["status"], "reason": row["reason"]}
    if row["status"] != PREDICTED:
        return found
    for name in {"malignant_p", "malignant_p_calibrated"} & row.keys():
        found[name] = {"concept": CODES["cancer"], "value": 100 * row[name], **percent}
    if "birads_set" in row:
        shares = {name.removeprefix("birads_p"): p for name, p in row.items() if name.startswith("birads_p")}
        categories = [{"category": CODES[name], "value": 100 * p, **percent} for name, p in shares.items()]
        kept = [CODES[name] for name in row["birads_set"].split()]
        found["birads"] = {"concept": CODES["category"], "distribution": categories, "conformal_set": kept}
    return found | {"log_odds_from": {view: row[f"from_{view}"] for view in VIEWS}}


def _picture(inputs: ExamSet, place: int, prediction: ExamPrediction, notice: str) -> str:
    """The views of an exam with what each contributes, as an image in the page."""
    visible, buffer = inputs.present[place].tolist(), io.BytesIO()
    title = f"Exam {inputs.names[place]}\n{notice}\n{CAPTION}"
    figure = draw_prediction(inputs, place, visible, prediction, title)
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight")
    plt.close(figure)
    shown = ", ".join(view for view, present in zip(VIEW_TITLES.values(), visible, strict=True) if present)
    text = f"The views {shown}, with the weight and contribution of each, and the probabilities of both breasts"
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _page(title: str, body: str) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{body}</main></body></html>\n'
