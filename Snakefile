# The whole study: `snakemake` runs config/demo.yaml, `snakemake --config study=config/paper.yaml` another one.
# After an interruption run the same command again: finished steps are not repeated.
from benchmarks import load_records
from mammo_utils.provenance import code_hash
from mammo_utils.workflow.plan import Plan

PLAN = Plan(config, workflow)
NOTEBOOKS = ["01_data_exploration", "02_preprocessing", "03_models", "05_results", "06_attention", "07_decisions"]
NOTEBOOKS += ["08_predict", "09_reading_room"]
OUTCOMES = [PLAN.outcome(name) for name in NOTEBOOKS]
TRAINED = [PLAN.outcome(f"04_train-{run}") for run in PLAN.runs]
COMPILED = PLAN.outcome("compile_scan")
MOST = max(1, workflow.cores - 1)  # leaves a core for steps that need none of the data
STEPS = load_records()["cpu"]["steps"]
INDEX = PLAN.folder / "html" / "index.html"
# every step by name: Snakemake does not remake a missing file in between if the last one exists
EVERYTHING = [INDEX, PLAN.outcome("cohort"), *OUTCOMES, *TRAINED]


localrules:
    all,
    figures,


wildcard_constraints:
    run="[A-Za-z0-9_]+-[a-z]+-[0-9a-z]+-seed[0-9]+(-blocks[0-9]+)?(-fold[0-9]+)?",


onstart:
    PLAN.on_start()


onsuccess:
    PLAN.on_success()


onerror:
    PLAN.on_error()


# A step runs again when a value in its `params` changes. Its command stands in `shell` only, so that settings which do
# not concern a step do not repeat it.
rule all:
    input:
        lambda wildcards: PLAN.everything(EVERYTHING),
    shell:
        PLAN.step("report", "--verdict")


rule cohort:
    output:
        PLAN.outcome("cohort"),
    params:
        data=PLAN.study.data.model_dump(mode="json"),
    priority: 3
    threads: MOST
    shell:
        PLAN.step("cohort", "--outcome {output[0]:q}")


rule exploration:
    input:
        PLAN.outcome("cohort"),
    output:
        PLAN.outcome("01_data_exploration"),
        PLAN.folder / "found" / "cohort.json",
    params:
        PLAN.depends("01_data_exploration", "data"),
    priority: 3
    shell:
        PLAN.notebook("01_data_exploration")


rule preprocessing:
    input:
        PLAN.folder / "found" / "cohort.json",
    output:
        PLAN.outcome("02_preprocessing"),
        PLAN.folder / "cohort" / "cohort.json",
        PLAN.folder / "split.json",
    params:
        PLAN.depends("02_preprocessing", "data", "images", "split", "real_exams"),
    priority: 3
    threads: MOST
    shell:
        PLAN.notebook("02_preprocessing")


# numba compiles the scan on its first use: once here, not in each of the processes that use it.
rule compile_scan:
    output:
        COMPILED,
    params:
        code_hash("mammo_utils.models.kernels.numba_kernel"),
    priority: 3
    shell:
        PLAN.step("compile_scan", "--outcome {output[0]:q}")


rule models:
    input:
        ancient(COMPILED),
    output:
        PLAN.outcome("03_models"),
    params:
        PLAN.depends("03_models", "images", "model"),
    shell:
        PLAN.supervised("03_models")


rule train:
    input:
        lambda wildcards: PLAN.run_inputs(wildcards.run, ancient(COMPILED)),
    output:
        PLAN.outcome("04_train-{run}"),
    params:
        depends=lambda wildcards: PLAN.run_depends(wildcards.run),
        parameters=lambda wildcards: PLAN.run_parameters(wildcards.run),
    priority: lambda wildcards: PLAN.run_priority(wildcards.run, STEPS)
    threads: PLAN.threads
    resources:
        gpu=PLAN.gpus,
    shell:
        PLAN.supervised(
            "04_train",
            "--gpus {resources.gpu} --more {params.parameters:q} --copy 04_train-{wildcards.run}",
            f"--at-once {PLAN.at_once}",
        )


rule results:
    input:
        TRAINED,
    output:
        PLAN.outcome("05_results"),
    params:
        PLAN.depends("05_results"),
    shell:
        PLAN.supervised("05_results")


rule attention:
    input:
        TRAINED,
    output:
        PLAN.outcome("06_attention"),
    params:
        PLAN.depends("06_attention"),
    shell:
        PLAN.supervised("06_attention")


rule decisions:
    input:
        TRAINED,
    output:
        PLAN.outcome("07_decisions"),
    params:
        PLAN.depends("07_decisions"),
    shell:
        PLAN.supervised("07_decisions")


rule predict:
    input:
        TRAINED,
    output:
        PLAN.outcome("08_predict"),
    params:
        PLAN.depends("08_predict"),
    shell:
        PLAN.supervised("08_predict")


rule reading_room:
    input:
        TRAINED,
    output:
        PLAN.outcome("09_reading_room"),
    params:
        PLAN.depends("09_reading_room"),
    shell:
        PLAN.supervised("09_reading_room")


rule report:
    input:
        OUTCOMES,
    output:
        INDEX,
    params:
        PLAN.report_depends(),
    shell:
        PLAN.step("report")


# Copies the study's figures into figures/, with what each was made from, and writes docs/demo/ from its notebooks;
# refuses figures and notebooks that are stale.
rule figures:
    input:
        lambda wildcards: PLAN.everything(EVERYTHING),
    shell:
        PLAN.step("publish")
