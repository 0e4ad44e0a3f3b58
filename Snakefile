# The whole study: `snakemake` runs config/demo.yaml, `snakemake --config study=config/paper.yaml` another one.
# Give the same command again after an interruption: what is finished is not done again.
import json
import shlex
import sys
from pathlib import Path

from mammo_utils.config import ParameterError, load_study
from mammo_utils.files import hash_of, project_root
from mammo_utils.workflow.study import StudyRunning, claim, forget_failures

FILE = config.get("study", "config/demo.yaml")
SETTINGS = config.get("settings", [])  # such as ["training.epochs=3", "images.size=32"]
SETTINGS = [SETTINGS] if isinstance(SETTINGS, str) else list(SETTINGS)
try:
    STUDY = load_study(FILE, SETTINGS)
    CLAIM = claim(STUDY)
except (ParameterError, StudyRunning) as error:
    sys.exit(str(error))
if CLAIM:
    forget_failures(STUDY)

HERE = STUDY.folder
RUNS = {run.id: run for run in STUDY.runs()}
PYTHON = shlex.quote(sys.executable)
SHOWN = STUDY.model_dump(mode="json", exclude={"grid", "training", "model"})  # what notebooks 01 and 02 depend on


def outcome(name):
    return HERE / "outcomes" / f"{name}.json"


def notebook(name, *words, copy="", **parameters):
    """The shell command that runs a notebook of the study."""
    parameters = {"study": str(FILE), "settings": SETTINGS, **parameters}
    words = ["-m", "mammo_utils.workflow.execute", name, HERE, outcome(copy or name), *words]
    words += ["--parameters", json.dumps(parameters), "--copy", copy]
    return "exec " + PYTHON + " " + shlex.join(map(str, words))


def module(name, *words):
    """The shell command that runs a step of the workflow on this study."""
    return "exec " + PYTHON + " " + shlex.join(map(str, ["-m", f"mammo_utils.workflow.{name}", FILE, *SETTINGS, *words]))


localrules: all, figures

wildcard_constraints:
    run="[A-Za-z0-9_]+-[a-z]+-[0-9a-z]+-seed[0-9]+",


rule all:
    input:
        HERE / "html" / "index.html",
    params:
        command=module("report", "--verdict"),
    shell:
        "{params.command}"


rule cohort:
    output:
        outcome("cohort"),
    params:
        data=STUDY.data.model_dump(mode="json"),
        command=module("cohort", "--outcome", outcome("cohort")),
    threads: workflow.cores
    shell:
        "{params.command}"


rule exploration:
    input:
        outcome("cohort"),
    output:
        outcome("01_data_exploration"),
        HERE / "exams.parquet",
    params:
        settings=hash_of(STUDY.data.model_dump(mode="json")),
        command=notebook("01_data_exploration"),
    shell:
        "{params.command}"


rule preprocessing:
    input:
        HERE / "exams.parquet",
    output:
        outcome("02_preprocessing"),
        HERE / "split.json",
    params:
        settings=hash_of(SHOWN),
        command=notebook("02_preprocessing"),
    threads: workflow.cores
    shell:
        "{params.command}"


rule models:
    output:
        outcome("03_models"),
    params:
        settings=hash_of(STUDY.model.model_dump(mode="json")),
        command=notebook("03_models", "--soft"),
    shell:
        "{params.command}"


def train(wildcards):
    run = RUNS[wildcards.run]
    names = {name: getattr(run, name) for name in ("system", "task_mode", "subset", "seed")}
    failure = run.folder / "failed.json"
    return notebook("04_train", "--soft", "--failure", failure, copy=f"04_train-{run.id}", **names)


rule train:
    input:
        HERE / "split.json",
    output:
        outcome("04_train-{run}"),
    params:
        settings=lambda wildcards: RUNS[wildcards.run].hash,
        command=train,
    priority: 1
    threads: STUDY.training.threads
    resources:
        gpu=0 if STUDY.training.device == "cpu" else 1,
    shell:
        "{params.command}"


rule results:
    input:
        [outcome(f"04_train-{run}") for run in RUNS],
    output:
        outcome("05_results"),
    params:
        settings=hash_of(STUDY.evidence.model_dump(mode="json")),
        command=notebook("05_results", "--soft"),
    shell:
        "{params.command}"


rule attention:
    input:
        [outcome(f"04_train-{run}") for run in RUNS],
    output:
        outcome("06_attention"),
    params:
        settings=hash_of(STUDY.evidence.model_dump(mode="json")),
        command=notebook("06_attention", "--soft"),
    shell:
        "{params.command}"


rule report:
    input:
        [outcome(name) for name in ("01_data_exploration", "02_preprocessing", "03_models", "05_results", "06_attention")],
    output:
        HERE / "html" / "index.html",
    params:
        command=module("report"),
    shell:
        "{params.command}"


# Copies the study's pictures into figures/, with what each was made from.
rule figures:
    input:
        HERE / "html" / "index.html",
    params:
        command=module("publish"),
    shell:
        "{params.command}"
