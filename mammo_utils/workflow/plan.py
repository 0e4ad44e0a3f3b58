"""What the Snakefile needs to know about a study: its settings, resources, shell commands and failures."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from snakemake.cli import get_argument_parser
from snakemake.shell import shell

from mammo_utils.config import ParameterError
from mammo_utils.io import STARTER, display_path, is_alive
from mammo_utils.provenance import code_hash, hash_of, notebook_code, notebook_hash
from mammo_utils.study import Study, load_study
from mammo_utils.training.run_state import run_state
from mammo_utils.workflow.gpus import has_gpu
from mammo_utils.workflow.state import (
    StudyRunning,
    failures,
    invalidate,
    lock_study,
    mark_failed,
    outcomes_to_redo,
)
from mammo_utils.workflow.status import describe_progress

READ_ONLY = (  # commands that change nothing
    *("dryrun", "summary", "detailed_summary", "list_rules", "list_target_rules", "dag", "rulegraph", "filegraph"),
)
SUPERVISED = ("models", "train", "results", "attention")  # rules whose failure stops no other


class Plan:
    """One study as the Snakefile sees it.

    Reading the Snakefile locks the study for this command, removes the outcomes of steps that must run again, and
    prints the progress. A read-only command and a job on a cluster's node neither lock nor remove anything.

    Attributes:
        study: The study.
        folder: Its folder of results.
        runs: Run ID -> run.
        threads, gpus: What one run needs.
    """

    def __init__(self, config: dict[str, Any], workflow: Any) -> None:
        self.workflow = workflow
        self.file = config.get("study", "config/demo.yaml")
        settings = config.get("settings", [])  # such as ["training.epochs=3", "images.size=32"]
        self.settings = [settings] if isinstance(settings, str) else list(settings)
        # Snakemake knows whether this is a dry run only after it has read the Snakefile
        options = vars(get_argument_parser().parse_known_args(sys.argv[1:])[0])
        read_only = any(options.get(name) for name in READ_ONLY)
        try:
            self.study: Study = load_study(self.file, self.settings)
            if not workflow.remote_exec:
                _refuse_to_replace(self.study)
            if workflow.remote_exec:  # a job on a cluster's node: the submitting command, elsewhere, holds the lock
                os.environ[STARTER] = str(os.getpid())
            self.lock = None if read_only or workflow.remote_exec else lock_study(self.study)
            self._require_real_data()
        except (ValueError, StudyRunning) as error:  # the project's own errors are one sentence each
            sys.exit(str(error))
        self.folder = self.study.folder
        self.runs = {run.id: run for run in self.study.runs()}
        training = self.study.training
        self.threads = training.threads * training.processes
        limits = {name: resource.value for name, resource in workflow.global_resources.items() if resource.value}
        on_cluster = workflow.remote_exec or "_nodes" in limits  # its GPUs are not on this machine
        wants_gpu = training.device == "cuda" or (training.device == "auto" and (on_cluster or has_gpu()))
        self.gpus = training.processes if wants_gpu else 0
        redo = outcomes_to_redo(self.study)
        if self.lock:  # not if `on_error` below continues the study
            invalidate(redo)
        if read_only and redo:
            print("will also run again: " + ", ".join(file.stem for file in redo), file=sys.stderr)
        if self.lock or read_only:
            print("\n".join(describe_progress(self.study, self._runs_at_once(limits))), file=sys.stderr)

    def _require_real_data(self) -> None:
        """Fail now if real data are missing, not after the steps that do not need them."""
        if self.lock and self.study.data.source != "synthetic" and not self.outcome("cohort").is_file():
            from mammo_utils.workflow.cohort import ensure_data  # slow to import

            ensure_data(self.study)

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

    def run_parameters(self, run: str) -> str:
        """The parameters of 04_train that name one run, as JSON."""
        spec = self.runs[run]
        values = {name: getattr(spec, name) for name in ("system", "task_mode", "subset", "seed", "blocks")}
        return json.dumps(values | {"fold": -1 if spec.fold is None else spec.fold})

    def notebook(self, name: str, *words: str, before: str = "") -> str:
        """The shell command that executes a notebook and records its outcome in the rule's first output."""
        parameters = json.dumps({"study": str(self.file), "settings": self.settings})
        start = f"exec {before}{_python('run_notebook')} {name}"
        return " ".join([start, _quote(self.folder), "{output[0]:q}", "--parameters", _quote(parameters), *words])

    def supervised(self, name: str, *words: str) -> str:
        """The same for a notebook whose failure stops no other, even if its process is killed."""
        return self.notebook(name, "--soft", *words, before=f"{_python('supervise')} {{output[0]:q}} -- ")

    def step(self, module: str, *words: str) -> str:
        """The shell command that runs a module of the workflow on this study."""
        return " ".join([f"exec {_python(module)}", _quote(self.file, *self.settings), *words])

    # --- the end ----------------------------------------------------------------------------------------

    def on_success(self) -> None:
        """Exit with an error if a supervised step failed. The report has named each of them with its reason."""
        if failures(self.study):
            sys.exit(1)

    def on_error(self) -> None:
        """Record the failure of supervised steps whose whole job was killed, then continue with the others."""
        scheduler = self.workflow.scheduler
        stopped = scheduler._user_kill or scheduler.running or not is_alive(int(os.environ[STARTER]))
        killed = [] if stopped else [job for job in scheduler.failed if job.rule.name in SUPERVISED]
        for job in killed:
            mark_failed(Path(job.output[0]), "its job was killed, most often at a time limit or for lack of memory")
        if killed:  # the steps that depend on them still have to run: start once more, invalidating nothing
            subprocess.run([sys.executable, "-m", "snakemake", *sys.argv[1:]])
        else:
            shell(self.step("report", "--broken"))  # Snakemake's own, which undoes the doubled braces


def _refuse_to_replace(study: Study) -> None:
    """Raise ParameterError if the study would replace finished runs of its name that have other settings."""
    advice = 'give the study another name, such as the setting "name=mine"'
    if study.replaced:
        raise ParameterError(f"The settings change {', '.join(study.replaced)} of the study {study.name}; {advice}.")
    for run in study.runs():
        state = run_state(run.folder, run)
        if state.other_settings:
            folder = display_path(run.folder)
            raise ParameterError(
                f"{folder} is finished with other settings. {state.reason} Either {advice}, or delete it."
            )


def _python(module: str) -> str:
    return f"{shlex.quote(sys.executable)} -m mammo_utils.workflow.{module}"


def _quote(*values: object) -> str:
    """Words for the shell, and for Snakemake, which formats the command."""
    return shlex.join(map(str, values)).replace("{", "{{").replace("}", "}}")
