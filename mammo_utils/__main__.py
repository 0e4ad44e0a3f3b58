"""One command over the study's commands: `mammo-study COMMAND ...`, also `python -m mammo_utils COMMAND ...`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

COMMANDS = {  # name -> module, what it does
    "run": ("snakemake", "run a study, config/demo.yaml if none is named: run [STUDY.yaml] [section.name=value ...]"),
    "status": ("mammo_utils.workflow.status", "the runs of a study by state, and the time left"),
    "report": ("mammo_utils.workflow.report", "a study's index page, its claims, its certificate"),
    "predict": ("mammo_utils.predict", "predict exams in DICOM files with a trained run, study or package"),
    "draw": ("mammo_utils.synthetic", "draw a synthetic release"),
    "download": ("mammo_utils.data.download", "download and check a data set"),
    "pretrain": ("mammo_utils.training.pretrain", "pretrain the demo's encoders on synthetic patches"),
    "figures": ("mammo_utils.workflow.publish", "compare the published figures with code and data: figures --check"),
    "benchmark": ("benchmarks", "measure speed and memory on this machine"),
}


def describe() -> str:
    """The help text."""
    lines = ["usage: mammo-study COMMAND ...; mammo-study COMMAND --help describes one", ""]
    return "\n".join([*lines, *(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())])


def translate(arguments: Sequence[str]) -> list[str]:
    """Translate the words after `mammo-study` into those after `python`.

    Of `run`, a word that ends in .yaml is the study and a word `name=value` is a setting; others go to Snakemake.

    Raises:
        ValueError: There is no such command.
    """
    name, *rest = arguments
    if name not in COMMANDS:
        raise ValueError(f"There is no command {name!r}; accepted are {', '.join(COMMANDS)}.")
    if name == "run":
        studies = [word for word in rest if word.endswith((".yaml", ".yml")) and not word.startswith("-")]
        settings = [word for word in rest if "=" in word and not word.startswith("-") and word not in studies]
        rest = [word for word in rest if word not in {*studies, *settings}]
        if studies or settings:
            rest += ["--config", *(f"study={study}" for study in studies)]
            rest += [f"settings={json.dumps(settings)}"] if settings else []
    return ["-m", COMMANDS[name][0], *rest]


def main() -> None:
    """Run the command line; the command replaces this process, so that it receives every signal."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(describe())
        return
    try:
        words = translate(arguments)
    except ValueError as error:
        sys.exit(str(error))
    os.execv(sys.executable, [sys.executable, *words])


if __name__ == "__main__":
    main()
