# The whole study: `snakemake` runs config/demo.yaml, `snakemake --config study=config/paper.yaml` another one.
# After an interruption run the same command again: finished steps are not repeated.
from mammo_utils.workflow.plan import Plan

PLAN = Plan(config, workflow)
NOTEBOOKS = ["01_data_exploration", "02_preprocessing", "03_models", "05_results", "06_attention"]
OUTCOMES = [PLAN.outcome(name) for name in NOTEBOOKS]
TRAINED = [PLAN.outcome(f"04_train-{run}") for run in PLAN.runs]
INDEX = PLAN.folder / "html" / "index.html"
# every step by name: Snakemake does not remake a missing file in between if the last one exists
EVERYTHING = [INDEX, PLAN.outcome("cohort"), *OUTCOMES, *TRAINED]


localrules:
    all,
    figures,


wildcard_constraints:
    run="[A-Za-z0-9_]+-[a-z]+-[0-9a-z]+-seed[0-9]+(-blocks[0-9]+)?(-fold[0-9]+)?",


onsuccess:
    PLAN.on_success()


onerror:
    PLAN.on_error()


# A step runs again when a value in its `params` changes. Its command stands in `shell` only, so that settings which do
# not concern a step do not repeat it.
rule all:
    input:
        EVERYTHING,
    shell:
        PLAN.step("report", "--verdict")


rule cohort:
    output:
        PLAN.outcome("cohort"),
    params:
        data=PLAN.study.data.model_dump(mode="json"),
    threads: workflow.cores
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
    threads: workflow.cores
    shell:
        PLAN.notebook("02_preprocessing")


rule models:
    output:
        PLAN.outcome("03_models"),
    params:
        PLAN.depends("03_models", "images", "model"),
    shell:
        PLAN.supervised("03_models")


rule train:
    input:
        PLAN.folder / "split.json",
    output:
        PLAN.outcome("04_train-{run}"),
    params:
        depends=lambda wildcards: PLAN.run_depends(wildcards.run),
        parameters=lambda wildcards: PLAN.run_parameters(wildcards.run),
    priority: 1
    threads: PLAN.threads
    resources:
        gpu=PLAN.gpus,
    shell:
        PLAN.supervised(
            "04_train",
            "--gpus {resources.gpu} --more {params.parameters:q} --copy 04_train-{wildcards.run}",
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


rule report:
    input:
        OUTCOMES,
    output:
        INDEX,
    params:
        PLAN.report_depends(),
    shell:
        PLAN.step("report")


# Copies the study's figures into figures/, with what each was made from; refuses figures that are stale.
rule figures:
    input:
        EVERYTHING,
    shell:
        PLAN.step("publish")
