"""What the Snakefile needs to know about a study: its settings, resources, shell commands and failures."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from snakemake.cli import get_argument_parser
from snakemake.shell import shell

from mammo_utils.config import ParameterError
from mammo_utils.io import STARTER, is_alive
from mammo_utils.provenance import code_hash, hash_of, notebook_code, notebook_hash
from mammo_utils.study import Study, load_study
from mammo_utils.training.run_state import refuse_other_settings, run_state
from mammo_utils.vocabulary import SUBSETS, SYSTEMS
from mammo_utils.workflow.gpus import has_gpu
from mammo_utils.workflow.status import describe_progress
from mammo_utils.workflow.study_state import (
    StudyRunning,
    damaged_outcomes,
    failures,
    lock_study,
    mark_failed,
    outcomes_to_redo,
)

CONFIG = ("study", "settings")  # names after `--config`
SUPERVISED = ("models", "train", "results", "attention", "decisions", "predict")  # rules whose failure stops no other
LIMIT = "LOKY_MAX_CPU_COUNT={threads}"  # of `io.available_cpus` in the processes of a step
NOISE = (  # beginnings of Snakemake's own messages; a step that fails names its reason itself
    "Building DAG",
    "Using shell",
    "Assuming unrestricted shared filesystem",
    "Select jobs to execute",
    "Execute ",
    "RuleException:\nCalledProcessError",
    "WorkflowError:\nAt least one job did not complete",
)


class Plan:
    """One study as the Snakefile sees it.

    Reading the Snakefile prints the progress and changes nothing, so that commands which only read need no lock. The
    study is locked when jobs start.

    Attributes:
        study: The study.
        folder: Its folder of results.
        runs: Run ID -> run.
        threads, gpus: What one run needs.
        at_once: Runs trained at once.
        redo: Outcome files whose steps must run again.
    """

    def __init__(self, config: dict[str, Any], workflow: Any) -> None:
        self.workflow = workflow
        logging.getLogger("snakemake.logging").addFilter(_is_told)
        limits = {name: resource.value for name, resource in workflow.global_resources.items() if resource.value}
        on_cluster = workflow.remote_exec or "_nodes" in limits  # its GPUs are not on this machine
        try:
            _check_command(config)
            self.file = config.get("study", "config/demo.yaml")
            settings = config.get("settings", [])  # such as ["training.epochs=3", "images.size=32"]
            if not isinstance(settings, str | list):
                raise ParameterError(f'settings is {settings!r}; it must be a list, such as ["training.epochs=3"].')
            self.settings = [settings] if isinstance(settings, str) else settings
            self.study: Study = load_study(self.file, self.settings)
            if not workflow.remote_exec:
                _refuse_to_replace(self.study)
        except ValueError as error:  # the project's own errors are one sentence each
            sys.exit(str(error))
        self.folder = self.study.folder
        self.runs = {run.id: run for run in self.study.runs()}
        training = self.study.training
        self.threads = training.threads * training.processes
        wants_gpu = training.device == "cuda" or (training.device == "auto" and (on_cluster or has_gpu()))
        self.gpus = training.processes if wants_gpu else 0
        self.at_once = self._runs_at_once(limits)
        starter = int(os.environ.get(STARTER, 0))
        # a job on a node, or the command that `on_error` starts: the first command has decided what runs again
        part = workflow.remote_exec or (starter not in (0, os.getpid()) and is_alive(starter))
        self.redo = [] if part else outcomes_to_redo(self.study)
        if workflow.remote_exec:  # the submitting command, elsewhere, holds the lock
            os.environ[STARTER] = str(os.getpid())
        if not part:
            lines = [*damaged_outcomes(self.study), *describe_progress(self.study, self.at_once)]
            print("\n".join(lines), file=sys.stderr)

    def everything(self, files: list[Path]) -> list[Path]:
        """The input of the rule `all`: `files`, after Snakemake has been asked to run the steps of `redo` again.

        This is what `--forcerun` does. Snakemake removes their outcomes when the steps start, not before.
        """
        self.workflow.dag.forcefiles.update(map(str, self.redo))
        return files

    def on_start(self) -> None:
        """Lock the study when jobs start, and fail now if real data are missing, not after steps without data."""
        try:
            self.lock = lock_study(self.study)
            if self.study.data.source != "synthetic" and not self.outcome("cohort").is_file():
                from mammo_utils.workflow.cohort import ensure_data  # slow to import

                ensure_data(self.study)
        except (ValueError, StudyRunning) as error:
            sys.exit(str(error))

    def _runs_at_once(self, limits: dict[str, int]) -> int:
        """Runs trained at once: on a cluster the limit of jobs, here what cores and GPUs allow."""
        at_once = limits.get("_nodes") or limits.get("_cores", 1) // self.threads
        if self.gpus and "gpu" in limits:
            at_once = min(at_once, limits["gpu"] // self.gpus)
        return max(at_once, 1)

    # --- steps ------------------------------------------------------------------------------------------

    def outcome(self, name: str) -> Path:
        """The file in which a step records its outcome."""
        return self.study.folder / "outcomes" / f"{name}.json"

    def depends(self, name: str, *sections: str) -> str:
        """Hash of what makes a notebook run again: its code, and the named sections of the settings (all if none)."""
        values = self.study.model_dump(mode="json")
        return hash_of([{s: values[s] for s in sections} if sections else values, notebook_code(name)])

    def run_depends(self, run: str) -> str:
        """The same for 04_train and one run. The package's code is left out, because finished runs are kept."""
        return hash_of([self.runs[run].hash, notebook_hash("04_train")])

    def report_depends(self) -> str:
        """The same for the report."""
        return hash_of([self.study.model_dump(mode="json"), code_hash("mammo_utils.workflow.report")])

    def run_inputs(self, run: str, compiled: Path) -> list[Path]:
        """What a run's training waits for: the split and, if its scan runs on a CPU, the compiled scan."""
        scans = SYSTEMS[self.runs[run].system].blocks
        on_cpu = not self.gpus and self.study.model.backend in ("auto", "cpu")
        return [self.folder / "split.json", *([compiled] if scans and on_cpu else [])]

    def run_priority(self, run: str, steps: list[dict[str, Any]]) -> float:
        """From 1 to 2, higher for longer runs: the longest one first, so that none is left to train alone at the end.

        Args:
            run: The run's ID.
            steps: The stored benchmark of the systems' training steps. More BI-RADS categories have more exams.
        """
        known = {row["system"]: row["step_ms"] for row in steps}
        costs = {r.id: (len(SUBSETS[r.subset]), known.get(r.system, 0)) for r in self.runs.values()}
        order = sorted(set(costs.values()))
        return 1 + order.index(costs[run]) / len(order)

    def run_parameters(self, run: str) -> str:
        """The parameters of 04_train that name one run, as JSON."""
        spec = self.runs[run]
        values = {name: getattr(spec, name) for name in ("system", "task_mode", "subset", "seed", "blocks")}
        return json.dumps(values | {"fold": -1 if spec.fold is None else spec.fold})

    def notebook(self, name: str, *words: str, before: str = "") -> str:
        """The shell command that executes a notebook and records its outcome in the rule's first output."""
        parameters = json.dumps({"study": str(self.file), "settings": self.settings})
        start = f"{LIMIT} exec {before}{_python('run_notebook')} {name}"
        return " ".join([start, _quote(self.folder), "{output[0]:q}", "--parameters", _quote(parameters), *words])

    def supervised(self, name: str, *words: str) -> str:
        """The same for a notebook whose failure stops no other, even if its process is killed."""
        return self.notebook(name, "--soft", *words, before=f"{_python('supervise')} {{output[0]:q}} -- ")

    def step(self, module: str, *words: str) -> str:
        """The shell command that runs a module of the workflow on this study."""
        return " ".join([f"{LIMIT} exec {_python(module)}", _quote(self.file, *self.settings), *words])

    # --- the end ----------------------------------------------------------------------------------------

    def on_success(self) -> None:
        """Exit with an error if a supervised step failed. The report has named each of them with its reason."""
        if failures(self.study):
            sys.exit(1)

    def on_error(self) -> None:
        """Record the failure of supervised steps whose whole job was killed, then continue with the others.

        Does nothing if the user or a scheduler has stopped the study.
        """
        scheduler = self.workflow.scheduler
        stopped = scheduler._user_kill or scheduler.running or not is_alive(int(os.environ[STARTER]))
        killed = [] if stopped else [job for job in scheduler.failed if job.rule.name in SUPERVISED]
        for job in killed:
            mark_failed(Path(job.output[0]), "its job was killed, most often at a time limit or for lack of memory")
        if stopped:
            print("The study was stopped. Run the same command again to continue.", file=sys.stderr)
        elif killed:  # the steps that depend on them still have to run: start once more, invalidating nothing
            subprocess.run([sys.executable, "-m", "snakemake", *sys.argv[1:]])
        else:
            shell(self.step("report", "--broken"), threads=1)  # Snakemake's own, which undoes the doubled braces


def _check_command(config: dict[str, Any]) -> None:
    """Refuse a misspelled name after `--config`, and `-j N` where Snakemake would ignore it.

    Raises ParameterError, one sentence.
    """
    for name in config:
        if name not in CONFIG:
            near = get_close_matches(name, CONFIG, 1, 0.4)
            hint = f"did you mean {near[0]!r}? Accepted" if near else "accepted"
            raise ParameterError(f"--config has no name {name!r}; {hint} are {' and '.join(CONFIG)}.")
    options = get_argument_parser().parse_known_args(sys.argv[1:])[0]
    elsewhere = options.executor or options.profile or options.workflow_profile  # as on a cluster, whose jobs it limits
    if options.jobs and not options.cores and not elsewhere:
        raise ParameterError(
            f"-j {options.jobs} would be ignored, because the default profile sets `cores: all`; use -c {options.jobs} "
            "to limit the cores."
        )


def _is_told(record: logging.LogRecord) -> bool:
    """Whether a line of Snakemake's log is printed."""
    record.msg = str(record.msg).replace("\n    (check individual jobs above for details)", "")
    return not record.msg.startswith(NOISE)


def _refuse_to_replace(study: Study) -> None:
    """Raise ParameterError if the study would replace finished runs of its name that have other settings."""
    if study.replaced:
        names = ", ".join(study.replaced)
        raise ParameterError(f'The settings change {names} of the study {study.name}; add "name=mine" to them.')
    for run in study.runs():
        refuse_other_settings(run, run_state(run.folder, run))


def _python(module: str) -> str:
    return f"{shlex.quote(sys.executable)} -m mammo_utils.workflow.{module}"


def _quote(*values: object) -> str:
    """Words for the shell, and for Snakemake, which formats the command."""
    return shlex.join(map(str, values)).replace("{", "{{").replace("}", "}}")
