"""Predict exams with trained runs, or pack runs into one file that predicts elsewhere.

python -m mammo_utils.predict RUN_OR_STUDY FOLDER_OR_FILES... --out DIR
python -m mammo_utils.predict --package RUN... OUT.zip [--export]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mammo_utils.predict.model import load_run
from mammo_utils.predict.package import write_package
from mammo_utils.predict.pages import summarise
from mammo_utils.predict.table import PREDICTED, predict


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m mammo_utils.predict", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "words", nargs="+", metavar="NAME", help="a run, study or package, then DICOM files and folders"
    )
    parser.add_argument("--out", help="folder for predictions.csv, predictions.json and the pages")
    for name in ("system", "task-mode", "subset"):
        parser.add_argument(f"--{name}", default="", help=f"the {name} to take of a study")
    parser.add_argument("--keep-ids", action="store_true", help="name exams by PatientID instead of a hash")
    parser.add_argument("--package", action="store_true", help="write a package of runs; the last NAME is its file")
    parser.add_argument("--export", action="store_true", help="write the model beside its package as OUT.pt2, too")
    options = parser.parse_args()
    if len(options.words) < 2 or not (options.out or options.package):
        parser.error("name a model and DICOM files, and a folder for the results with --out")
    if options.export and not options.package:
        parser.error("--export goes with --package")
    chosen = {"system": options.system, "task_mode": options.task_mode, "subset": options.subset}
    try:
        if options.package:
            *sources, target = options.words
            model = load_run(*sources, **chosen)
            print(f"{target}: SHA-256 {write_package(model, target)}", flush=True)
            if options.export:
                from mammo_utils.predict.export import write_program  # loads torch's compiler, 110 MB

                program = Path(target).with_suffix(".pt2")
                print(f"Exporting {program} ...", flush=True)
                write_program(model, program)
            return
        model = load_run(options.words[0], **chosen)
        table = predict(model, options.words[1:], options.out, keep_ids=options.keep_ids)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print("\n".join(table.attrs["statements"]))
    for exam, breasts in table.groupby("exam"):
        rows = breasts.to_dict("records")
        print(
            "\n  ".join([f"\n{exam}", *map(summarise, rows), f"unlike the training data: {rows[0]['unlike_training']}"])
        )
    for row in table.attrs["unread"]:
        if row["kind"] in ("file", "image"):
            print(f"not used: {row['what']}: {row['reason']}")
    print(f"\nOpen this page: {Path(options.out, 'index.html').absolute().as_uri()}")
    sys.exit(0 if PREDICTED in set(table["status"]) else "No exam was predicted.")


if __name__ == "__main__":
    main()
