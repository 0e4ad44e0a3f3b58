"""Two processes that share each batch do as one does.

Each of them imports this module anew, so what a test alone needs is imported in the test.
"""

import os
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
import torch

from mammo_utils.config import Training
from mammo_utils.training import loop
from mammo_utils.training.distributed import ProcessesError, average_buffers, rank_and_size, run_distributed
from mammo_utils.training.memory import TrainingError
from mammo_utils.training.predict import predict
from tests.training.test_loop import Tiny, parts


class Still(Tiny):
    """Neither batch norm nor dropout look at the batch."""

    def train(self, mode=True):
        return super().train(False)


def curve(say, kind, checkpoint, epochs, batch_size=7, unlike=False):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = kind()
    rows, best = loop.train(
        model,
        parts(),
        Training(epochs=epochs, batch_size=batch_size),
        learning_rate=0.03,
        seed=1,
        checkpoint=checkpoint,
        identity={"config": "another" if unlike and rank_and_size()[0] else "a"},
    )
    say((rows, best, {name: tensor.numpy() for name, tensor in model.state_dict().items()}))


def found_by(n, *arguments):
    said = []
    if n == 1:
        curve(said.append, *arguments)
    else:
        run_distributed(curve, n, arguments, said.append, (TrainingError,))
    return said[0]


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    """28 exams in batches of 9: shares of 5 and 4, and of 1 and none in the last one."""
    (one, best, weights), (two, best_two, weights_two) = (
        found_by(n, Still, tmp_path / f"{n}.pt", 4, 9) for n in (1, 2)
    )
    for row, other in zip(one, two, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert other["validation_auc"] == pytest.approx(row["validation_auc"], abs=1e-6)
    assert best == best_two
    for name, value in weights.items():
        torch.testing.assert_close(torch.tensor(weights_two[name]), torch.tensor(value), rtol=1e-4, atol=1e-5)


def answers(say):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    probabilities = predict(Still(), parts()["validation"], Training(batch_size=5))[0]["diagnosis"]
    model = Tiny()
    model.norm.running_mean.fill_(float(rank_and_size()[0] + 1))
    average_buffers(model)
    say((probabilities, model.norm.running_mean.tolist()))


def test_two_processes_answer_each_exam_once_and_keep_the_mean_of_batch_norms_statistics():
    """An exam that both answered would have the sum of two probabilities."""
    found = []
    run_distributed(answers, 2, (), found.append, ())
    answers(found.append)
    (two, statistics), (one, _) = found
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one))
    assert set(statistics) == {1.5}


def recompute(say):
    """Each process has its own number of batches; the last has none."""
    rank, n = rank_and_size()
    model = Tiny()
    exams = parts()["train"]
    batches = list(exams.in_order(8))
    loop.recompute_batch_norm(model, batches if n == 1 else batches[:0] if rank else batches, Training(), 8)
    say((model.norm.running_mean.tolist(), model.norm.running_var.tolist()))


def test_a_process_without_batches_does_not_count_in_recomputed_statistics():
    found = []
    run_distributed(recompute, 2, (), found.append, ())
    recompute(found.append)
    assert found[0] == found[1]


def wait(say, path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    path.with_suffix(f".{rank_and_size()[0]}").write_text(str(os.getpid()))
    time.sleep(60)


def start_and_wait(path):
    run_distributed(wait, 2, (path,), print, ())


def test_processes_end_with_the_one_that_started_them(tmp_path):
    starter = get_context("spawn").Process(target=start_and_wait, args=(tmp_path / "process",))
    starter.start()
    until(lambda: len([path for path in tmp_path.iterdir() if path.read_text()]) == 2)
    processes = [int(path.read_text()) for path in tmp_path.iterdir()]
    os.kill(starter.pid, signal.SIGKILL)
    starter.join()
    until(lambda: not any(map(alive, processes)))


def alive(process):
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_stopped_and_started_again_two_processes_end_the_same(tmp_path):
    whole = found_by(2, Tiny, tmp_path / "whole.pt", 4)
    found_by(2, Tiny, tmp_path / "c.pt", 2)
    shutil.copy(tmp_path / "c.pt", tmp_path / "d.pt")
    for again in (
        found_by(2, Tiny, tmp_path / "c.pt", 4),
        found_by(2, Tiny, tmp_path / "d.pt", 4, 7, True),  # the second one finds no state of its own: both begin anew
    ):
        assert [row["loss"] for row in again[0]] == [row["loss"] for row in whole[0]]
        assert all((again[2][name] == value).all() for name, value in whole[2].items())
    assert whole[2]["norm.running_mean"].any()


def test_a_run_in_two_processes_predicts_each_exam_once(small_study, in_small_project):
    from mammo_utils.training.run import train_run
    from tests.kill import results

    spec = next(run for run in small_study.runs() if run.id == "hybrid_view_specific-multi-1v5-seed0")
    seen, found = [], []
    for n in (1, 2):
        run = small_study.run(spec.system, spec.task_mode, spec.subset, 0, variant=[f"training.processes={n}"])
        train_run(run, seen.append)
        found.append(results(run.folder)["predictions"])
    assert [row["epoch"] for row in seen] == [1, 1]
    names = ["exam", "side", "part", "diagnosis", "birads", *(name for name in found[0] if name.startswith("present_"))]
    pd.testing.assert_frame_equal(found[1][names], found[0][names])
    assert not found[1].duplicated(["exam", "side"]).any()


def fail(say, how):
    say("began")
    torch.distributed.barrier()  # else rank 0 may not be connected yet when rank 1 ends
    if rank_and_size() == (1, 2):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise TrainingError("One exam does not fit.") if how == "known" else KeyError("lost")
    torch.distributed.barrier()


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("known", TrainingError, "^One exam does not fit.$"),
        ("other", ProcessesError, "^KeyError: 'lost'$"),
        ("killed", ProcessesError, "killed by SIGKILL; run the same command again"),
    ],
)
def test_what_ends_one_process_ends_the_training_with_its_reason(how, error, words):
    said = []
    with pytest.raises(error, match=words):
        run_distributed(fail, 2, (how,), said.append, (TrainingError,))
    assert said == ["began"]
