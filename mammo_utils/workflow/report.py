"""The pages of a study: each executed notebook as HTML, and an index page.

python -m mammo_utils.workflow.report config/demo.yaml [settings ...] [--verdict | --claims |
    --verify CERTIFICATE | --compare OTHER]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from bs4 import BeautifulSoup

from mammo_utils.config import ParameterError
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.tables import results_table
from mammo_utils.io import read_json, write_json, write_text
from mammo_utils.study import Study, load_study
from mammo_utils.vocabulary import REFERENCE
from mammo_utils.workflow.certificate import certify, compare_certificates, read_certificate
from mammo_utils.workflow.compare_studies import write_comparison
from mammo_utils.workflow.documents import claim_page, collect_evidence, model_card
from mammo_utils.workflow.index_page import index_body
from mammo_utils.workflow.notebook_page import notebook_body, title_of
from mammo_utils.workflow.pages import Link, style, tidy_tables, to_html, write_page
from mammo_utils.workflow.pictures import Pictures
from mammo_utils.workflow.study_state import failures

CARD, CLAIM = Link("model_card.html", "Model card"), Link("claim.html", "CLAIM checklist")
CERTIFICATE = Link("certificate.json", "Certificate: what the numbers are based on, with hashes (JSON)")
PREDICTED = Link("predicted/index.html", "Exams predicted by notebook 08")


def write_report(study: Study) -> Path:
    """Write the study's folder `html` from the results that exist, and return the index page.

    The folder is complete in itself: nothing in it needs a network or a file outside.
    """
    folder, pictures = study.folder / "html", Pictures(study.folder)
    notebooks = sorted((study.folder / "notebooks").glob("[!.]*.ipynb"))
    pages = {Link(f"{notebook.stem}.html", title_of(notebook)): notebook for notebook in notebooks}
    steps = _reading_order([*pages, CARD, CLAIM])

    def write(link: Link, body: str) -> None:
        previous, next_ = steps[link]
        write_page(folder / link.address, link.title, body, study.name, previous=previous, next_=next_)

    write_text(folder / "style.css", style())
    for link, notebook in pages.items():
        write(link, notebook_body(notebook, pictures))
    runs = read_runs(study)
    results = results_table(runs, study)
    certificate = certify(study, runs, results)
    for place in (study.folder, folder):
        write_json(place / CERTIFICATE.address, certificate)
    evidence = collect_evidence(study, runs, results)
    for link, text in ((CARD, model_card(evidence)), (CLAIM, claim_page(evidence))):
        write_text((study.folder / link.address).with_suffix(".md"), text)
        soup = BeautifulSoup(to_html(text.replace("](html/", "](")), "html.parser")
        tidy_tables(soup, lambda _: "")
        write(link, str(soup))
    links = [*pages, CARD, CLAIM, CERTIFICATE]
    if (study.folder / PREDICTED.address).is_file():
        _copy_predictions(study.folder / "predicted", folder / "predicted")
        links.append(PREDICTED)
    links += [
        Link(page.name, page.stem.replace("compare-", "Compared with ")) for page in folder.glob("compare-*.html")
    ]
    body = index_body(study, links, runs, results, pictures)
    write_page(folder / "index.html", "Results", body, study.name, contents=None, next_=links[0])
    pictures.remove_unused()
    return folder / "index.html"


def _reading_order(pages: list[Link]) -> dict[Link, tuple[Link | None, Link | None]]:
    """The pages before and after each page. All runs of notebook 04 share a place, that of the reference if any."""
    trainings = [page for page in pages if page.address.startswith("04_train-")]
    shown = min(trainings, key=lambda page: f"{REFERENCE}-multi" not in page.address, default=None)
    order = [Link("index.html", "Contents"), *(page for page in pages if page not in trainings or page is shown)]
    steps = {}
    for place, page in enumerate(order[1:], 1):
        previous, next_ = order[place - 1], order[place + 1] if place + 1 < len(order) else None
        for same in trainings if page in trainings else [page]:
            steps[same] = (None if place == 1 else previous, next_)
    return steps


def _copy_predictions(source: Path, target: Path) -> None:
    """Copy the pages and tables of the predicted exams, without the model."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in (".html", ".csv", ".json"):
            shutil.copy(file, target)


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
    parser.add_argument("--compare", metavar="OTHER", help="compare with another study: its file or results folder")
    options = parser.parse_args()
    try:
        study = load_study(options.study, options.settings)
    except ParameterError as error:
        parser.exit(2, f"{error}\n")
    if options.claims:
        sys.exit(print_claims(study))
    if options.verify:
        sys.exit(verify(study, options.verify))
    if options.compare:
        try:
            print(write_comparison(study, options.compare))
        except (ParameterError, ValueError) as error:
            parser.exit(2, f"{error}\n")
        return
    action = print_verdict if options.verdict else report_unfinished if options.broken else write_report
    action(study)


if __name__ == "__main__":
    main()
