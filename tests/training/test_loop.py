"""The loop on a model of a few parameters, so that each rule of §4.3 shows."""

import copy
import io
import math
import multiprocessing
import os
import pickle
import signal
import weakref
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mammo_utils.config import Training
from mammo_utils.study import load_study
from mammo_utils.training import loop, memory, predict
from mammo_utils.training.dataset import ExamSet, make_exam_set
from mammo_utils.vocabulary import VIEWS
from tests.conftest import CHECKOUT


class Tiny(nn.Module):
    """Mean grey of each view → both heads; with dropout and batch norm, which carry state."""

    classes, ordinal = {"diagnosis": 2}, ()

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)

    def forward(self, images, present):
        features = self.drop(self.norm(images.mean((2, 3, 4))))
        return {"diagnosis": self.head(features).unflatten(-1, (2, 2))}, present / present.sum(1, keepdim=True)


def parts():
    """Exams whose left breasts are brighter when malignant."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (40, 2))
    images = random.integers(0, 120, (160, 8, 8)) + 100 * np.repeat(labels, 2, axis=1).reshape(-1, 1, 1)
    names = [f"S1-{i:04d}" for i in range(40)]
    table = pd.DataFrame(True, index=names, columns=list(VIEWS))
    table = table.assign(L_diagnosis=labels[:, 0], R_diagnosis=labels[:, 1], L_birads=-1, R_birads=-1)
    store = SimpleNamespace(
        images=images.astype(np.uint8),
        rows_of=lambda kept: np.array([[4 * names.index(n) + v for v in range(4)] for n in kept]),
    )
    groups = pd.Series(names, names)
    return {
        "train": make_exam_set(table[:28], groups, store, (1, 5), "cpu"),
        "validation": make_exam_set(table[28:], groups, store, (1, 5), "cpu"),
    }


def run(checkpoint, epochs=6, on_epoch=lambda row: None, **settings):
    torch.manual_seed(0)
    model = Tiny()
    rows, best = loop.train(
        model,
        parts(),
        Training(**{"epochs": epochs, "batch_size": 5} | settings),
        learning_rate=0.03,
        seed=1,
        checkpoint=checkpoint,
        identity={"config": "a"},
        on_epoch=on_epoch,
    )
    return model, [{k: v for k, v in row.items() if k != "seconds"} for row in rows], best


def die_after(checkpoint, epochs, settings):
    def on_epoch(row):
        if row["epoch"] == epochs:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    run(checkpoint, on_epoch=on_epoch, **settings)


def test_it_learns_and_keeps_its_best_epoch(tmp_path):
    model, rows, best = run(tmp_path / "c.pt", epochs=20)
    scores = [row["validation_auc"] for row in rows]
    assert max(scores) > 0.9 and best == 1 + int(np.argmax(scores))
    again = predict.validation_scores(model, parts()["validation"], Training())["diagnosis"]
    assert again == max(scores), "the weights left are those of the best epoch"


def test_the_weights_left_are_not_the_last_ones(tmp_path, monkeypatch):
    scores = iter([0.6, 0.9, 0.7, 0.8])
    monkeypatch.setattr(loop, "validation_scores", lambda *_: {"diagnosis": next(scores)})
    states = []
    original = loop.train_epoch

    def train_epoch(model, *rest):
        found = original(model, *rest)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return found

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    model, _, best = run(tmp_path / "c.pt", epochs=4)
    assert best == 2 and all(torch.equal(tensor, states[1][name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(model.head.weight, states[3]["head.weight"])


def test_the_recipe_reaches_the_training(tmp_path, monkeypatch):
    """Class weights, augmentation, AdamW, a dropout stream of each step."""
    seen = {"weights": [], "augmentation": [], "seeds": []}
    backward, epoch, manual_seed = loop.backward, ExamSet.epoch, torch.manual_seed
    monkeypatch.setattr(loop, "backward", lambda *a: seen["weights"].append(a[3]) or backward(*a))
    monkeypatch.setattr(ExamSet, "epoch", lambda *a: seen["augmentation"].append(a[3].augmentation) or epoch(*a))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seen["seeds"].append(seed) or manual_seed(seed))
    run(tmp_path / "c.pt", epochs=2)
    labels = parts()["train"].labels["diagnosis"]
    expected = 1 / torch.bincount(labels[labels >= 0]).float()
    torch.testing.assert_close(seen["weights"][0]["diagnosis"].float(), expected / expected.mean())
    assert seen["augmentation"] == [Training().augmentation] * 2
    assert len(set(seen["seeds"][-12:])) == 12, "6 steps of 2 epochs"
    optimizer = loop.make_optimizer(Tiny(), Training(), 0.1)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["lr"] == 0.1


def test_switches_do_what_they_say():
    model = loop.prepare_model(Convolving(), Training())
    weight = model.encoders[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    plain = loop.prepare_model(Convolving(), Training(channels_last=False, compile=True))
    assert plain.encoders[0].weight.is_contiguous() and plain.encoders[0]._compiled_call_impl is not None
    assert model.encoders[0]._compiled_call_impl is None
    x = torch.ones(1, 3, 4, 4)
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float32)):
        with memory.autocast(torch.device("cpu"), Training(precision=precision)):
            assert model.encoders[0](x).dtype == dtype


@pytest.mark.parametrize("name", ["resnet18", "hybrid_view_specific"])
def test_a_fused_step_is_a_plain_one(name):
    """torch's fused AdamW on a CPU goes through memory as it lies: a gradient that lay otherwise than its weight would
    move the wrong weights, and nothing would say so."""
    from mammo_utils.models.system import build_system

    torch.manual_seed(0)
    whole = loop.prepare_model(
        build_system(name, load_study(CHECKOUT / "config" / "demo.yaml").model, n_birads=2), Training()
    )
    logits, _ = whole(torch.rand(2, 4, 3, 32, 32), torch.ones(2, 4, dtype=torch.bool))
    sum((values * values).sum() for values in logits.values()).backward()
    stepped = []
    for fused in (True, False):
        model = copy.deepcopy(whole)
        assert any(not p.is_contiguous() for p in model.parameters()), "channels_last does nothing here"
        for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
            ours.grad = theirs.grad  # as autograd laid it
        loop.make_optimizer(model, Training(fused=fused), 0.01).step()
        stepped.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*stepped, rtol=0, atol=1e-5)


class Convolving(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleList([nn.Conv2d(3, 8, 3)])


def test_the_schedule_goes_on_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "validation_scores", lambda *_: {"diagnosis": 0.6})
    _, rows, _ = run(tmp_path / "a.pt", epochs=6, patience=2)
    assert [row["learning_rate"] / 0.03 for row in rows] == [1, 1, 1, 0.5, 0.5, 0.25]
    for epochs in (2, 4, 6):  # stopped in the middle of its patience
        _, rows_resumed, _ = run(tmp_path / "b.pt", epochs=epochs, patience=2)
    assert rows_resumed == rows


@pytest.mark.parametrize("settings", [{}, {"schedule": "cosine", "average": 0.8, "batch_norm": "recomputed"}])
def test_a_killed_training_goes_on_to_the_same_last_bit(tmp_path, settings):
    straight, rows, best = run(tmp_path / "a.pt", **settings)
    process = multiprocessing.get_context("spawn").Process(target=die_after, args=(tmp_path / "b.pt", 2, settings))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    seen = []
    resumed, rows_resumed, best_resumed = run(tmp_path / "b.pt", on_epoch=seen.append, **settings)
    assert [row["epoch"] for row in seen] == [3, 4, 5, 6], "finished epochs are not done again"
    assert rows_resumed == rows and best_resumed == best
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_checkpoint_of_another_configuration_is_not_used(tmp_path):
    run(tmp_path / "c.pt", epochs=2)
    assert loop.load_checkpoint(tmp_path / "c.pt", {"config": "a"}, torch.device("cpu"))
    assert loop.load_checkpoint(tmp_path / "c.pt", {"config": "b"}, torch.device("cpu")) is None


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def flip_a_weight(content):
    weights = torch.load(io.BytesIO(content))["model"]["head.weight"].numpy().tobytes()
    return flip(content, content.index(weights))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"foreign bytes",
        lambda content: pickle.dumps({"identity": {"config": "a"}}),
        flip_a_weight,
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_run_starts_over(tmp_path, damage, capsys):
    path = tmp_path / "c.pt"
    model, rows, best = run(tmp_path / "straight.pt")
    run(path, epochs=3)
    path.write_bytes(damage(path.read_bytes()))
    seen = []
    again, rows_again, best_again = run(path, on_epoch=seen.append)
    assert len(seen) == 6 and (rows_again, best_again) == (rows, best)
    assert capsys.readouterr().out.splitlines() == [f"{path} is damaged; the run starts over."]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_no_flipped_byte_of_a_checkpoint_passes(tmp_path):
    """Nor do bytes of the archive's directory, such as the mark of a folder, which change what torch reads."""
    path, device = tmp_path / "c.pt", torch.device("cpu")
    run(path, epochs=1)
    content = path.read_bytes()
    for position in [*range(0, len(content), 97), *range(len(content) - 2000, len(content), 5)]:
        path.write_bytes(flip(content, position))
        assert loop.load_checkpoint(path, {"config": "a"}, device) is None, position


def test_learning_rate_halves_after_patience_epochs_without_a_better_auc(tmp_path, monkeypatch):
    scores = iter([0.6, 0.7, 0.7, 0.65, 0.7, 0.8, 0.1, 0.1])
    monkeypatch.setattr(loop, "validation_scores", lambda *_: {"diagnosis": next(scores)})
    _, rows, best = run(tmp_path / "c.pt", epochs=8, patience=3)
    rates = [row["learning_rate"] / 0.03 for row in rows]
    assert rates == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5] and best == 6


def test_the_cosine_falls_to_0_at_the_last_epoch(tmp_path):
    _, rows, _ = run(tmp_path / "c.pt", epochs=4, schedule="cosine")
    expected = [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    np.testing.assert_allclose([row["learning_rate"] / 0.03 for row in rows], expected)


def test_the_averaged_weights_are_the_ones_evaluated_and_kept(tmp_path, monkeypatch):
    steps = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(loop, "validation_scores", lambda model, *_: {"diagnosis": 0.5 + len(steps) / 100})

    def recorded(optimizer, *rest):
        step(optimizer, *rest)
        steps.append(next(p.detach().clone() for g in optimizer.param_groups for p in g["params"] if p.dim() == 2))

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    model, _, best = run(tmp_path / "c.pt", epochs=3, average=0.8)
    expected = steps[0]
    for weight in steps[1:]:
        expected = 0.8 * expected + 0.2 * weight
    assert best == 3 and len(steps) == 18
    torch.testing.assert_close(model.head.weight, expected)
    assert not torch.allclose(model.head.weight, steps[-1], atol=1e-4)


def test_recomputed_statistics_are_those_of_torchs_update_bn():
    class Alone(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(images, torch.ones(len(images), 4, dtype=torch.bool))

    exams, settings = parts()["train"], Training(batch_size=5)
    model = Tiny()
    nn.init.constant_(model.norm.running_mean, 7.0)
    expected = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn((batch.images for batch in exams.in_order(5)), Alone(expected))
    loop.recompute_batch_norm(model, exams.in_order(5), settings, 5)
    torch.testing.assert_close(model.norm.running_mean, expected.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, expected.norm.running_var)
    assert model.norm.momentum == expected.norm.momentum == 0.1


def test_recomputed_statistics_are_evaluated(tmp_path):
    model, rows, best = run(tmp_path / "c.pt", epochs=4, batch_norm="recomputed")
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loop.recompute_batch_norm(model, parts()["train"].in_order(5), Training(), 5)
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    assert rows[best - 1]["validation_auc"] == max(row["validation_auc"] for row in rows)


def test_the_gradient_is_clipped(tmp_path, monkeypatch):
    norms = []
    original = nn.utils.clip_grad_norm_

    def spy(parameters, bound):
        parameters = list(parameters)
        norm = original(parameters, bound)
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in parameters)))
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
    run(tmp_path / "c.pt", epochs=1, clip=1e-3)
    assert norms and max(norms) <= 1.001e-3


def test_a_loss_that_is_not_finite_names_its_exams_and_keeps_the_last_state(tmp_path, monkeypatch):
    original, calls = loop.backward, []

    def backward(model, batch, *rest):
        calls.append(batch.exams.tolist())
        loss = original(model, batch, *rest)
        return loss * math.nan if len(calls) >= 2 * 6 + 4 else loss  # 28 exams are 6 batches of 5

    monkeypatch.setattr(loop, "backward", backward)
    with pytest.raises(
        memory.TrainingError, match=r"epoch 3 is not finite, nan at step 4 of 6.*epoch 2 is kept"
    ) as told:
        run(tmp_path / "c.pt")
    assert ", ".join(f"S1-{i:04d}" for i in calls[15]) in str(told.value)
    assert len(loop.load_checkpoint(tmp_path / "c.pt", {"config": "a"}, torch.device("cpu"))["rows"]) == 2


@pytest.mark.parametrize("step", [3, 6])
def test_a_gradient_that_is_not_finite_is_told_of_its_own_step(tmp_path, monkeypatch, step):
    """Not of the next one, whose loss it spoils."""
    original, calls = loop.backward, []

    def backward(model, batch, *rest):
        loss = original(model, batch, *rest)
        calls.append(batch.exams.tolist())
        if len(calls) == step:
            next(model.parameters()).grad[:] = math.inf
        return loss

    monkeypatch.setattr(loop, "backward", backward)
    told = rf"gradient of epoch 1 is not finite at step {step} of 6, exams (.*); the state"
    with pytest.raises(memory.TrainingError, match=told) as error:
        run(tmp_path / "c.pt")
    assert ", ".join(f"S1-{i:04d}" for i in calls[step - 1]) in str(error.value)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_shortage_of_memory_is_known_by_the_words_of_every_library(text, short):
    assert memory.is_out_of_memory(RuntimeError(text)) == short


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(micro):
    """Absent breasts and unequal classes included; batch norm in eval and no dropout, which look at other exams."""
    torch.manual_seed(0)
    model, exams, weights = Tiny().eval(), parts()["train"], {"diagnosis": torch.tensor([0.3, 1.7])}
    batch = exams.batch(torch.arange(5))
    batch.labels["diagnosis"][[0, 3, 4], [0, 1, 1]] = -1
    optimizer, found = torch.optim.SGD(model.parameters()), []
    for size in (5, micro):
        loss = loop.backward(model, batch, optimizer, weights, Training(), size)
        found.append([loss, *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


class Greedy(Tiny):
    """Has no memory for more than two exams."""

    def forward(self, images, present):
        if len(images) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(images, present)


def test_out_of_memory_goes_on_with_fewer_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "Tiny", Greedy)
    _, rows, _ = run(tmp_path / "c.pt", epochs=2, batch_size=8)
    assert [row["micro_batch"] for row in rows] == [2, 2], "8, then 4, then 2"
    monkeypatch.setitem(globals(), "Tiny", Tiny.__mro__[1])
    _, by_hand, _ = run(tmp_path / "d.pt", epochs=1, batch_size=8, micro_batch=2)
    assert by_hand[0]["micro_batch"] == 2 and by_hand[0]["loss"] == rows[0]["loss"], "dropout draws the same again"


def test_what_a_batch_left_in_memory_is_gone_before_the_next_attempt():
    kept = []

    def attempt(micro):
        activations = torch.zeros(3)
        kept.append(weakref.ref(activations))
        if micro > 2:
            raise torch.OutOfMemoryError("out of memory")
        return [one() is None for one in kept[:-1]]

    assert memory.with_oom_backoff(attempt, 8, parts()["train"].batch(torch.arange(8))) == ([True, True], 2)


def test_how_many_fitted_is_known_after_a_stop(tmp_path):
    run(tmp_path / "c.pt", epochs=1, batch_size=8, micro_batch=2)
    _, rows, _ = run(tmp_path / "c.pt", epochs=2, batch_size=8, micro_batch=0)
    assert [row["micro_batch"] for row in rows] == [2, 2]


def test_memory_that_runs_out_elsewhere_is_said(tmp_path, monkeypatch):
    def step(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(memory.TrainingError, match="Out of memory outside the forward and backward pass"):
        run(tmp_path / "c.pt")


def test_one_exam_that_does_not_fit_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(memory.TrainingError, match=r"One exam of 8 px does not fit into memory; lower images\.size"):
        run(tmp_path / "c.pt")
    monkeypatch.setattr(Tiny, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path / "c.pt")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_keeps_the_last_whole_state(tmp_path, monkeypatch, error):
    original, count = torch.save, iter(range(9))

    def save(state, path):
        if next(count) == 2:
            path.write_bytes(b"half")
            raise error
        original(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(memory.TrainingError, match=r"after epoch 3 could not be written .*after epoch 2 is kept"):
        run(tmp_path / "c.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"], "nothing half-written stays"
    monkeypatch.setattr(torch, "save", original)
    seen = []
    _, rows, _ = run(tmp_path / "c.pt", on_epoch=seen.append)
    assert [row["epoch"] for row in seen] == [3, 4, 5, 6] and rows == run(tmp_path / "d.pt")[1]


def test_marked_parameters_do_not_decay():
    model = Tiny()
    model.head.bias._no_weight_decay = True
    decayed, free = loop.make_optimizer(model, Training(weight_decay=0.05), 0.1).param_groups
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0
    assert free["params"] == [model.head.bias] and len(decayed["params"]) == 3


def test_predictions_hold_every_labelled_breast_once():
    exams = parts()["validation"]
    table = predict.prediction_table(exams, "validation", *predict.predict(Tiny(), exams, Training()))
    assert len(table) == 24 and not table.duplicated(["exam", "side"]).any()
    assert table["diagnosis_p"].between(0, 1).all() and "birads" not in table
    left = table[table["side"] == "L"].set_index("exam")["diagnosis"]
    assert left.loc[list(exams.names)].tolist() == exams.labels["diagnosis"][:, 0].tolist()
