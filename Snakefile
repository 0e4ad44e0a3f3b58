# The whole study: `snakemake` runs config/demo.yaml, `snakemake --config study=config/paper.yaml` another one.
# Give the same command again after an interruption: what is finished is not done again.
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.cli import get_argument_parser

from mammo_utils.config import load_study
from mammo_utils.files import code_hash, hash_of
from mammo_utils.workflow.gpus import any_gpu
from mammo_utils.workflow.publish import notebook_hash
from mammo_utils.workflow.status import report
from mammo_utils.workflow.state import STARTER, StudyRunning, alive, claim, failures, forget, give_up, to_do_again

FILE = config.get("study", "config/demo.yaml")
SETTINGS = config.get("settings", [])  # such as ["training.epochs=3", "images.size=32"]
SETTINGS = [SETTINGS] if isinstance(SETTINGS, str) else list(SETTINGS)
# Snakemake itself knows only after it has read this file; what only tells holds nothing and forgets nothing
WORDS = vars(get_argument_parser().parse_known_args(sys.argv[1:])[0])
TELLING = ("dryrun", "summary", "detailed_summary", "list_rules", "list_target_rules", "dag", "rulegraph", "filegraph")
DRY = any(WORDS.get(name) for name in TELLING)
try:
    STUDY = load_study(FILE, SETTINGS)
    if workflow.remote_exec:  # a job of a cluster: the study is held by the command that sent it, on another machine
        os.environ[STARTER] = str(os.getpid())
    CLAIM = None if DRY or workflow.remote_exec else claim(STUDY)
    if CLAIM and STUDY.data.source != "synthetic" and not (STUDY.folder / "outcomes" / "cohort.json").is_file():
        from mammo_utils.workflow.cohort import provide  # late: it takes a second to import

        provide(STUDY)  # data that are not there are missed at once, not after what does without them
except (ValueError, StudyRunning) as error:  # each of ours is one sentence
    sys.exit(str(error))

# what one run takes, and how many run at once: of a cluster as many as it takes jobs, here as many as there is room for
THREADS = STUDY.training.threads * STUDY.training.processes
ROOM = {name: resource.value for name, resource in workflow.global_resources.items() if resource.value}
DEVICE, CLUSTER = STUDY.training.device, workflow.remote_exec or "_nodes" in ROOM  # a cluster's GPUs are not here
GPUS = STUDY.training.processes if DEVICE == "cuda" or (DEVICE == "auto" and (CLUSTER or any_gpu())) else 0
AT_ONCE = ROOM.get("_nodes") or ROOM.get("_cores", 1) // THREADS
if GPUS and "gpu" in ROOM:
    AT_ONCE = min(AT_ONCE, ROOM["gpu"] // GPUS)

AGAIN = to_do_again(STUDY)
if CLAIM:  # not where onerror below goes on with the study
    forget(AGAIN)
if DRY and AGAIN:
    print("to be done again besides: " + ", ".join(file.stem for file in AGAIN), file=sys.stderr)
if CLAIM or DRY:
    print("\n".join(report(STUDY, max(AT_ONCE, 1))), file=sys.stderr)

HERE = STUDY.folder
SETTINGS_OF = STUDY.model_dump(mode="json")  # by section
RUNS = {run.id: run for run in STUDY.runs()}
RUN_NAMES = ("system", "task_mode", "subset", "seed", "blocks")
PYTHON = shlex.quote(sys.executable)


def outcome(name):
    return HERE / "outcomes" / f"{name}.json"


def words(*values):
    """Words for the shell as they are, whatever is in them."""
    return shlex.join(map(str, values)).replace("{", "{{").replace("}", "}}")


def notebook(name, *more, before=""):
    """The shell command that runs a notebook of the study and leaves its outcome in the rule's first output."""
    parameters = json.dumps({"study": str(FILE), "settings": SETTINGS})
    start = f"exec {before} {PYTHON} -m mammo_utils.workflow.run_notebook {name}"
    return " ".join([start, words(HERE), "{output[0]:q}", "--parameters", words(parameters), *more])


def soft(name, *more, failure=""):
    """The same for a notebook whose failure stops no other, be it killed."""
    guard = f"{PYTHON} -m mammo_utils.workflow.run_notebook {{output[0]:q}} {failure} --"
    return notebook(name, "--soft", *more, before=guard)


def step(name, *more):
    """The shell command that runs a step of the workflow on this study."""
    return f"exec {PYTHON} -m mammo_utils.workflow.{name} " + " ".join([words(FILE, *SETTINGS), *more])


# A step is done again when the settings that it names in `params` change, or its notebook. Its command stands
# in `shell` alone, so that a setting that does not concern a step leaves it alone.
def made_with(name, settings):
    return hash_of([settings, notebook_hash(name)])


NOTEBOOKS = [outcome(n) for n in ("01_data_exploration", "02_preprocessing", "03_models", "05_results", "06_attention")]
TRAINED = [outcome(f"04_train-{run}") for run in RUNS]
INDEX = HERE / "html" / "index.html"
# all by name: of what lies between, Snakemake does not make a missing file where the last one is there
EVERYTHING = [INDEX, outcome("cohort"), *NOTEBOOKS, *TRAINED]

localrules: all, figures


wildcard_constraints:
    run="[A-Za-z0-9_]+-[a-z]+-[0-9a-z]+-seed[0-9]+(-blocks[0-9]+)?",


onsuccess:
    if failures(STUDY):  # each was named with its reason, and the page stands
        sys.exit(1)


def lost():
    """Outcome -> file for the reason, of the soft notebooks whose whole job was ended, as by a scheduler's time limit;
    none where the command itself was stopped."""
    jobs = workflow.scheduler
    if jobs._user_kill or jobs.running or not alive(int(os.environ[STARTER])):
        return {}
    found = [job for job in jobs.failed if job.rule.name in ("models", "train", "results", "attention")]
    return {job.output[0]: getattr(job.params, "failure", None) for job in found}


onerror:
    ended = lost()
    for file, failure in ended.items():
        give_up(Path(file), "its job was ended from outside, most often by a time limit or for want of memory", failure)
    if ended:  # what rests on them is still to be made: once more, forgetting nothing
        subprocess.run([sys.executable, "-m", "snakemake", *sys.argv[1:]])
    else:
        shell(step("report", "--broken"))


rule all:
    input:
        EVERYTHING,
    shell:
        step("report", "--verdict")


rule cohort:
    output:
        outcome("cohort"),
    params:
        data=STUDY.data.model_dump(mode="json"),
    threads: workflow.cores
    shell:
        step("cohort", "--outcome {output[0]:q}")


rule exploration:
    input:
        outcome("cohort"),
    output:
        outcome("01_data_exploration"),
        HERE / "exams.parquet",
    params:
        made_with("01_data_exploration", SETTINGS_OF["data"]),
    shell:
        notebook("01_data_exploration")


rule preprocessing:
    input:
        HERE / "exams.parquet",
    output:
        outcome("02_preprocessing"),
        HERE / "split.json",
        HERE / "fates" / "cohort.json",
    params:
        made_with("02_preprocessing", [SETTINGS_OF[name] for name in ("data", "images", "split", "real_exams")]),
    threads: workflow.cores
    shell:
        notebook("02_preprocessing")


rule models:
    output:
        outcome("03_models"),
    params:
        made_with("03_models", [SETTINGS_OF[name] for name in ("images", "model")]),
    shell:
        soft("03_models")


rule train:
    input:
        HERE / "split.json",
    output:
        outcome("04_train-{run}"),
    params:
        made_with=lambda wildcards: made_with("04_train", RUNS[wildcards.run].hash),
        names=lambda wildcards: json.dumps({name: getattr(RUNS[wildcards.run], name) for name in RUN_NAMES}),
        failure=lambda wildcards: RUNS[wildcards.run].folder / "failed.json",
    priority: 1
    threads: THREADS
    resources:
        gpu=GPUS,
    shell:
        soft(
            "04_train",
            "--gpus {resources.gpu} --more {params.names:q} --copy 04_train-{wildcards.run} --failure {params.failure:q}",
            failure="--failure {params.failure:q}",
        )


rule results:
    input:
        TRAINED,
    output:
        outcome("05_results"),
    params:
        made_with("05_results", SETTINGS_OF),
    shell:
        soft("05_results")


rule attention:
    input:
        TRAINED,
    output:
        outcome("06_attention"),
    params:
        made_with("06_attention", SETTINGS_OF),
    shell:
        soft("06_attention")


rule report:
    input:
        NOTEBOOKS,
    output:
        INDEX,
    params:
        made_with=hash_of([SETTINGS_OF, code_hash("workflow", "evidence")]),
    shell:
        step("report")


# Copies the study's pictures into figures/, with what each was made from.
rule figures:
    input:
        EVERYTHING,
    shell:
        step("publish")
