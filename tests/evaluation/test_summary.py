"""The sentences hold the numbers of the tables."""

from mammo_utils.evaluation.calibration import calibration_table
from mammo_utils.evaluation.comparisons import compare_systems, label_agreement
from mammo_utils.evaluation.conformal import conformal_table
from mammo_utils.evaluation.levels import levels_table
from mammo_utils.evaluation.operating import operating_table
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.subgroups import subgroup_table
from mammo_utils.evaluation.summary import summarise_decisions, summarise_results
from mammo_utils.evaluation.tables import results_table
from tests.evaluation.fakes import write_run


def tables(runs, study):
    return (results_table(runs, study), compare_systems(runs, study), levels_table(runs, study)), (
        calibration_table(runs, study),
        operating_table(runs),
        conformal_table(runs, study),
    )


def test_the_sentences_count_what_the_tables_hold(fake_study):
    for system, seed in (("resnet18", 0), ("hybrid_shared", 0), ("hybrid_shared", 1)):
        write_run(fake_study.run(system, "multi", "1v5", seed))
    runs = read_runs(fake_study)
    (results, compared, levels), decisions = tables(runs, fake_study)
    told, trained, exams = summarise_results(results, compared, levels)
    apart = compared["answer"].str.startswith("told apart").sum()
    assert told.startswith(f"{apart} of 4 comparisons are told apart (Holm's correction")
    assert f"; {(compared['p_bh'] < 0.05).sum()} if all of them" in told
    assert trained == "Systems trained once: 1; the spread of a training is not in their intervals."
    assert "of 2 systems" in exams
    subgroups = subgroup_table([], None)
    sentences = summarise_decisions(*decisions, subgroups)
    assert len(sentences) == 4 and "of 3 trainings" in sentences[0]
    points = decisions[1].query("level == 'breast' and aim == 0.9")
    assert f"{points['sensitivity'].min():.3f} to {points['sensitivity'].max():.3f}" in sentences[2]
    table = label_agreement(runs)
    assert table.loc["1v5", "share"] == 1 and table.loc["1v5", "agree"] == table.loc["1v5", "breasts"]


def test_without_runs_there_is_nothing_to_summarise(fake_study):
    runs = read_runs(fake_study)
    results, decisions = tables(runs, fake_study)
    assert summarise_results(*results) == [] and summarise_decisions(*decisions, subgroup_table([], None)) == []
    assert label_agreement(runs).empty
