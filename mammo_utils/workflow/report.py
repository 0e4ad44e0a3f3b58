"""The pages of a study: each executed notebook as HTML, and an index page.

python -m mammo_utils.workflow.report config/demo.yaml [settings ...] [--verdict | --claims | --verify CERTIFICATE]
"""

from __future__ import annotations

import argparse
import html
import sys
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.filters.markdown import markdown2html

from mammo_utils.config import ParameterError
from mammo_utils.data.cohort import load_cohort
from mammo_utils.evaluation.bootstrap import ONE_TRAINING
from mammo_utils.evaluation.runs import RunResult, read_runs
from mammo_utils.evaluation.tables import RECOMBINATION, results_table, run_list, settings_table, with_intervals
from mammo_utils.io import read_json, write_json, write_text
from mammo_utils.metrics import METRICS
from mammo_utils.plots.save import read_manifest
from mammo_utils.provenance import environment
from mammo_utils.study import Study, load_study
from mammo_utils.workflow.certificate import certify, compare_certificates, read_certificate
from mammo_utils.workflow.documents import claim_page, collect_evidence, model_card
from mammo_utils.workflow.study_state import failures

ORDER = "05 07 06 09 01 02 03"  # order in which the notebooks' figures are shown
WIDGET = "application/vnd.jupyter.widget-view+json"
PAGE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}{% block html_head_js_mermaidjs %}{% endblock %}"""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.mark { background: #fff3cd; border-left: 4px solid #e0a800; padding: .6rem 1rem; }
.failed { background: #fdecea; border-left: 4px solid #c0392b; padding: .6rem 1rem; }
table { border-collapse: collapse; font-size: .9rem; } th, td { padding: .25rem .7rem; text-align: left; }
tr { border-bottom: 1px solid #eee; } thead tr { border-bottom: 2px solid #999; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; } figcaption { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; }
"""


def write_report(study: Study) -> Path:
    """Write the study's folder `html` from the results that exist, and return the index page."""
    pages = study.folder / "html"
    links = []
    for notebook in sorted((study.folder / "notebooks").glob("[!.]*.ipynb")):
        write_text(pages / f"{notebook.stem}.html", page_of(notebook))
        links.append((f"{notebook.stem}.html", notebook.stem))
    runs = read_runs(study)
    results = results_table(runs, study)
    write_json(study.folder / "certificate.json", certify(study, runs, results))
    evidence = collect_evidence(study, runs, results)
    for name, text in (("model_card", model_card(evidence)), ("claim", claim_page(evidence))):
        write_text(study.folder / f"{name}.md", text)
        links.append((f"{name}.html", name))
        body = markdown2html(text.replace("](html/", "](").replace("](certificate.json", "](../certificate.json"))
        write_text(pages / f"{name}.html", _page(f"{study.name}: {name}", body))
    links.append(("../certificate.json", "certificate.json"))
    index = pages / "index.html"
    write_text(index, index_page(study, links, runs, results))
    return index


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def page_of(notebook: Path) -> str:
    """An executed notebook as one HTML page, figures included. Only its equations need a network, for MathJax."""
    node = nbformat.read(notebook, as_version=4)
    node.metadata.pop("widgets", None)
    for output in (output for cell in node.cells for output in cell.get("outputs", [])):
        if WIDGET in output.get("data", {}):  # it needs a kernel; a static figure stands beside it
            output["data"] = {"text/plain": "(a widget: open the notebook in JupyterLab to use it)"}
    return HTMLExporter(raw_template=PAGE).from_notebook_node(node)[0]


def index_page(study: Study, links: list[tuple[str, str]], runs: list[RunResult], results: pd.DataFrame) -> str:
    """Write the HTML of the index page.

    Args:
        study: The study.
        links: (address, name) of each other page.
        runs: The study's runs.
        results: The result of `tables.results_table`.
    """
    cohort = load_cohort(study.folder / ("cohort" if (study.folder / "cohort").is_dir() else "found"))
    facts = environment()
    parts = [f"<h1>Study “{study.name}”</h1>"]
    parts.append("<p>A hybrid CNN–VSSM model for multi-view, multi-task mammography analysis.</p>")
    if cohort.synthetic:
        parts.append(
            '<p class="mark"><b>Synthetic cohort.</b> Every image and label here is drawn by a program. The '
            "numbers show that the study runs and what it can find; they are no evidence about patients.</p>"
        )
    if failed := failures(study):
        items = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in failed.items())
        parts.append(f'<div class="failed"><b>{len(failed)} failed</b><ul>{items}</ul></div>')
    parts.append("<h2>Results</h2>" + _results(results))
    if (study.folder / "results.json").is_file():
        checks = pd.DataFrame(read_json(study.folder / "results.json")["checks"]).fillna("cannot be decided")
        parts.append("<p>What the study claims, checked against these numbers:</p>")
        parts.append(_html(checks.replace({"holds": {True: "yes", False: "no"}}).set_index("claim")))
    records = [study.folder / name for name in ("results.json", "decisions.json")]
    sentences = [s for file in records if file.is_file() for s in read_json(file).get("summary", [])]
    if sentences:
        parts.append(f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>")
    if (study.folder / "views.json").is_file():
        parts.append("<h2>Is each breast read from its own views?</h2>" + _recombination(study))
    parts.append("<h2>Notebooks as they ran, and what the study rests on</h2><ul>")
    parts += [f'<li><a href="{escape(link)}">{escape(name)}</a></li>' for link, name in links]
    if (study.folder / "predicted" / "index.html").is_file():
        parts.append('<li><a href="../predicted/index.html">exams predicted by 08_predict</a></li>')
    parts.append("</ul><p>Widgets need a kernel, so a static figure stands in for each. Equations need a network.</p>")
    parts.append("<h2>Figures</h2>")
    for entry in sorted(read_manifest(study.folder / "figures"), key=lambda e: ORDER.find(e["notebook"][:2])):
        text = escape(entry["caption"] or entry["figure"])
        source = f"<br>{escape(entry['notebook'])}"
        image = f'<img src="../figures/{escape(entry["figure"])}" alt="{text}" loading="lazy">'
        parts.append(f"<figure>{image}<figcaption>{text}{source}</figcaption></figure>")
    parts.append("<h2>Runs</h2>" + _html(run_list(runs)))
    parts.append("<h2>Settings compared with the paper's</h2>" + _html(settings_table(study)))
    excluded = cohort.excluded.groupby(["kind", "reason"]).size().rename("number").reset_index()
    parts.append(
        f"<h2>Data</h2><p>{len(cohort.exams)} exams, {(cohort.images['status'] == 'used').sum()} images used.</p>"
    )
    if len(excluded):
        parts.append("<p>Excluded, by reason:</p>" + _html(excluded.set_index("kind")))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    parts.append(f"<h2>Made with</h2><p>{escape(versions)}; {escape(facts['platform'])}; ")
    parts.append(f"commit {escape(facts['commit'][:12] or 'unknown')}; {escape(facts['written'])}</p>")
    return _page(f"{study.name}: results", "\n".join(parts))


def _results(table: pd.DataFrame) -> str:
    table = table[table["side"] == "both"] if len(table) else table
    if not len(table):
        return "<p>No run has finished yet.</p>"
    cell = table.apply(lambda row: f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", axis=1)
    rows = table.assign(cell=cell, what=table["task"] + " " + table["metric"].map(lambda name: METRICS[name].title))
    wide = rows.pivot_table(
        index=["subset", "task_mode", "system"], columns="what", values="cell", aggfunc="first", sort=False
    ).fillna("")
    wide.columns.name = None
    first = rows.iloc[0]
    note = f"On the part <i>{escape(first['part'])}</i>, first row: {first['n_exams']} exams and {first['n_breasts']} "
    note += f"breasts of {first['n_patients']} patients; 95 % intervals over patients"
    note += f" ({ONE_TRAINING})." if first["n_seeds"] == 1 else "."
    if first["part"] == "validation":
        note += " The same part chose the epoch, so the values are optimistic."
    return f"<p>{note}</p>" + _html(wide.reset_index().set_index("system"))


def _recombination(study: Study) -> str:
    """What notebook 06 recorded of exams whose breasts are of two patients."""
    record = read_json(study.folder / "views.json")
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in record["statements"])
    table = with_intervals(pd.DataFrame(record["recombination"]), RECOMBINATION)
    return f"<p>Exams recombined of two patients' breasts; 95 % intervals over patients.</p><ul>{sentences}</ul>" + (
        _html(table) if len(table) else ""
    )


def _html(table: pd.DataFrame) -> str:
    return '<div class="wide">' + table.to_html(border=0, na_rep="", justify="left") + "</div>"


def escape(text: Any) -> str:
    """Any value as text that is safe in HTML."""
    return html.escape(str(text))


def print_verdict(study: Study) -> None:
    """Print what failed and which page to open."""
    for name, reason in (failed := failures(study)).items():
        print(f"failed: {name}: {reason}")
    if failed:
        print("Run the same command again to retry what failed.")
    index = study.folder / "html" / "index.html"
    print(f"\nOpen this page first: {index}\n{index.as_uri()}", flush=True)


def report_unfinished(study: Study) -> None:
    """Report the results that exist, after a step failed on which everything else depends."""
    if (study.folder / "found").is_dir():
        write_report(study)
        print_verdict(study)
    print("The study is not finished; the reason is printed above. Run the same command again to continue.", flush=True)


def print_claims(study: Study) -> int:
    """Print whether each claim of notebook 05 holds, and what notebook 06 found.

    Return 1 if a claim fails or cannot be decided, else 0. A finding is no claim: it is printed whatever it is.
    """
    path = study.folder / "results.json"
    if not path.is_file():
        print(f"The study {study.name} has no results.json yet; run it first.")
        return 1
    checks = read_json(path)["checks"]
    for check in checks:
        word = {True: "holds", False: "DOES NOT HOLD", None: "cannot be decided"}[check["holds"]]
        print(f"{word}: {check['claim']} {check['count']} {check['exceptions']}".rstrip())
    views = study.folder / "views.json"
    for found in read_json(views).get("findings", []) if views.is_file() else ():
        print(f"found: {found['finding']}")
    return int(not all(check["holds"] for check in checks))


def verify(study: Study, path: Path) -> int:
    """Compare the study with a certificate and print the differences; return 0 if the numbers are the same, else 1."""
    try:
        there = read_certificate(path)
    except ValueError as error:
        print(error)
        return 2
    runs = read_runs(study)
    lines, same = compare_certificates(certify(study, runs, results_table(runs, study)), there)
    print("\n".join(lines))
    return int(not same)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="the study file")
    parser.add_argument("settings", nargs="*", help="settings that replace the file's, such as training.epochs=3")
    parser.add_argument("--verdict", action="store_true", help="write nothing; print what failed and what to open")
    parser.add_argument("--broken", action="store_true", help="a step failed: report the results that exist")
    parser.add_argument("--claims", action="store_true", help="write nothing; print which claims of the results hold")
    parser.add_argument("--verify", type=Path, metavar="FILE", help="write nothing; compare with a certificate.json")
    options = parser.parse_args()
    try:
        study = load_study(options.study, options.settings)
    except ParameterError as error:
        parser.exit(2, f"{error}\n")
    if options.claims:
        sys.exit(print_claims(study))
    if options.verify:
        sys.exit(verify(study, options.verify))
    action = print_verdict if options.verdict else report_unfinished if options.broken else write_report
    action(study)


if __name__ == "__main__":
    main()
