"""The paper's recipe, sentence by sentence: what config/paper.yaml resolves to, and what the code does with it.

A change of any value or behaviour below fails. Where the paper is silent, the value is that of docs/choices.md.
"""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from mammo_utils.data.cohort import load_cohort
from mammo_utils.images.preprocess import prepare_image
from mammo_utils.images.store import load_store
from mammo_utils.study import flatten, load_study
from mammo_utils.training import loop
from mammo_utils.training import run as runs
from mammo_utils.training.dataset import DEVIATION, MEAN
from mammo_utils.training.loss import total_loss
from mammo_utils.vocabulary import VIEWS

SILENT = "(silent)"
PAPER = (  # section, what it says, setting, value
    ("§3", "TOMPEI-CMMD fulfilled all these criteria", "data.source", "cmmd"),
    ("§3", "unlike prior studies that discarded incomplete cases, we preserved them", "data.cohort", "usable"),
    ("§3", "TOMPEI-CMMD provided valuable corrections; of twins and wrong sides " + SILENT, "data.corrections", True),
    ("§3", "labels of one picture under two patients " + SILENT, "data.conflicts", "exclude"),
    ("§3", "split at the patient level into 80 % training and 20 % validation", "split.kind", "paper"),
    ("§3", "20 % validation (272 patients)", "split.validation", 0.2),
    ("§3", SILENT, "split.seed", 0),
    ("§3.1", "resized to a fixed resolution of 512 x 512 pixels", "images.size", 512),
    ("§3.1", "resized to 512 x 512, whatever the proportions", "images.resize", "stretch"),
    ("§3.1", "the window of the header " + SILENT, "images.window", False),
    ("§3.1", "rotations within +-10 degrees", "training.augmentation.rotation", 10),
    ("§3.1", "translations within +-5 %", "training.augmentation.translation", 0.05),
    ("§3.1", "scaling between 95 % and 105 %", "training.augmentation.scale", 0.05),
    ("§3.1", "random horizontal flips with a probability of 0.5", "training.augmentation.flip", 0.5),
    ("§3.1", "zero tensors were used to replace the absent images", "model.missing", "zeros"),
    ("§2.1", "the architecture from [11]; its variant " + SILENT, "model.block", "shuffle"),
    ("§2.1.3", "the early layers of a pretrained ResNet-18; which " + SILENT, "model.resnet_cut", "layer2"),
    ("§2.2", "gated attention, Eq. 8-10", "model.fusion", "gated"),
    ("§4.1", "task-specific weights, set to 0.5 each", "training.task_weights.diagnosis", 0.5),
    ("§4.1", "task-specific weights, set to 0.5 each", "training.task_weights.birads", 0.5),
    ("§2.1", "networks of the usual width", "model.width", 1.0),
    ("§4.2", "four successive VSSM blocks", "model.vssm_blocks", 4),
    ("§4.2", "in the hybrid models half the number of VSSM layers", "model.hybrid_blocks", 2),
    ("§4.2", "backbones initialized with pre-trained weights", "model.weights", "imagenet"),
    ("§4.2", "subsets of the dataset; the other breasts of an exam " + SILENT, "subset_rule", "exams"),
    ("§4.3", "weight decay of 0.05", "training.weight_decay", 0.05),
    ("§4.3", "1e-4 for ResNet-18", "training.learning_rate.resnet18", 1e-4),
    ("§4.3", "ResNet-50 " + SILENT + ": as its family", "training.learning_rate.resnet50", 1e-4),
    ("§4.3", "1e-4 for the hybrid model", "training.learning_rate.hybrid_shared", 1e-4),
    ("§4.3", "1e-4 for the hybrid model", "training.learning_rate.hybrid_view_specific", 1e-4),
    ("§4.3", "1e-5 for the VSSM models", "training.learning_rate.vssm_shared", 1e-5),
    ("§4.3", "1e-5 for the VSSM models", "training.learning_rate.vssm_view_specific", 1e-5),
    ("§4.3", "reduced by a factor of 0.5", "training.factor", 0.5),
    ("§4.3", "if the metric did not improve for 10 epochs", "training.patience", 10),
    ("§4.3", "Dropout (p=0.5) in the fusion head", "model.dropout", 0.5),
    ("§2.1", "drop path " + SILENT, "model.drop_path", 0.0),
    ("§4.1", "averaging the Cross-Entropy (CE) loss; the form of the head " + SILENT, "model.birads_head", "softmax"),
    ("§4.3", "gradient clipping with a maximum norm of 1.0", "training.clip", 1.0),
    ("§4.3", "a maximum of 100 epochs", "training.epochs", 100),
    ("§4.3", "batch size " + SILENT, "training.batch_size", 8),
    ("§4.3", "all exams of a batch at once " + SILENT, "training.micro_batch", 0),
    ("§4.3", "reduced ... if the metric did not improve", "training.schedule", "plateau"),
    ("§4.3", "at most 100 epochs; early stopping is not mentioned " + SILENT, "training.early_stopping", 0),
    ("§4.3", "no average of the weights is mentioned " + SILENT, "training.average", 0.0),
    ("§4.3", "batch norm in evaluation " + SILENT, "training.batch_norm", "running"),
    ("§4.3", "no exchange of breasts is mentioned " + SILENT, "training.recombine", 0.0),
    ("§4.3", "no views are dropped " + SILENT, "training.view_dropout", 0.0),
    ("§4.3", "no mixed precision is mentioned " + SILENT, "training.precision", "float32"),
)
# how and where it is computed, which the paper leaves to the machine
MACHINE = """study system task_mode subset seed blocks fold variant data.folder images.workers model.backend
training.device
training.threads training.processes training.store training.saliency training.channels_last training.fused
training.compile training.tensorboard""".split()


@pytest.mark.parametrize(("section", "says", "setting", "value"), PAPER, ids=[row[2] for row in PAPER])
def test_the_papers_study_has_what_the_paper_says(section, says, setting, value):
    for run in load_study("config/paper.yaml").runs():
        assert flatten(run.model_dump())[setting] == value, f"{section}: {says}"


def test_every_setting_that_decides_a_number_of_the_papers_runs_is_in_the_table():
    run = load_study("config/paper.yaml").runs()[0]
    of_others = ("data.synthetic.", "split.test", "split.fold")  # of the synthetic cohort and the other kinds of split
    names = {name for name in flatten(run.model_dump()) if not name.startswith(of_others)}
    assert names - set(MACHINE) == {row[2] for row in PAPER}


def test_the_grid_is_that_of_tables_2_to_4():
    """§4.2: three subsets; "All models were evaluated in both single-task and multi-task settings"."""
    grid = load_study("config/paper.yaml").grid
    assert len(grid.systems) == 6 and set(grid.task_modes) == {"multi", "diagnosis", "birads"}
    assert set(grid.subsets) == {"1v5", "1v3v5", "1to5"} and grid.seeds == (0,) and not grid.blocks


# --- what the code does -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(small_study, small_project):
    """One run of the paper's study, shrunk, two epochs; and what its training was given on the way."""
    seen = {"clip": [], "loss": [], "optimizer": [], "schedule": []}
    plain = {
        "optimizer_of": loop.make_optimizer,
        "total_loss": loop.total_loss,
        "clip": torch.nn.utils.clip_grad_norm_,
        "schedule": torch.optim.lr_scheduler.ReduceLROnPlateau,
    }

    def noted(kind, function):
        def call(*values, **named):
            result = function(*values, **named)
            seen[kind].append((values, named, result))
            return result

        return call

    run = small_study.run("resnet18", "multi", "1v3v5", 0)
    training = load_study("config/paper.yaml").training.model_copy(update={"epochs": 2, "device": "cpu"})
    run = run.model_copy(update={"training": training, "study": small_study.name, "seed": 77})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMMO_PROJECT", str(small_project))
        patch.setattr(loop, "make_optimizer", noted("optimizer", plain["optimizer_of"]))
        patch.setattr(loop, "total_loss", noted("loss", plain["total_loss"]))
        patch.setattr(torch.nn.utils, "clip_grad_norm_", noted("clip", plain["clip"]))
        patch.setattr(torch.optim.lr_scheduler, "ReduceLROnPlateau", noted("schedule", plain["schedule"]))
        metrics = runs.train_run(run)
        epochs, table = pd.read_csv(run.folder / "epochs.csv"), pd.read_parquet(run.folder / "predictions.parquet")
        data = runs.load_data(run)
        yield seen, metrics, epochs, table, data
        shutil.rmtree(run.folder)


def test_adamw_clipping_and_the_schedule(trained):
    """§4.3: "We used the AdamW optimizer with a weight decay of 0.05", clipping at 1.0, halved after 10 epochs."""
    seen, *_ = trained
    ((_, _, optimizer),) = seen["optimizer"]
    assert type(optimizer) is torch.optim.AdamW
    assert {group["weight_decay"] for group in optimizer.param_groups} <= {0.05, 0.0}
    assert optimizer.param_groups[0]["weight_decay"] == 0.05 and optimizer.param_groups[0]["lr"] == 1e-4
    assert {values[1] for values, _, _ in seen["clip"]} == {1.0}
    ((_, named, schedule),) = seen["schedule"]
    assert (schedule.factor, schedule.patience, schedule.mode, named["threshold"]) == (0.5, 9, "max", 0.0)


def test_cross_entropy_is_weighted_by_inverse_frequency_in_the_training_set(trained):
    """§4.1: "weighted by the inverse frequency of each class in the training set"; task weights of 0.5 (Eq. 11)."""
    seen, _, _, _, data = trained
    for values, _, _ in seen["loss"]:
        _, _, weights, task_weights, *_ = values
        assert task_weights == {"diagnosis": 0.5, "birads": 0.5}
        for task, weight in weights.items():
            labels = data.parts["train"].labels[task]
            counts = torch.bincount(labels[labels >= 0], minlength=len(weight)).float()
            shares = (counts * weight)[counts > 0]
            assert torch.allclose(shares, shares[:1].expand_as(shares)), task


def test_a_single_task_has_the_weight_1_and_the_label_minus_1_is_excluded():
    """§3.1: a label of -1 is "excluded from loss computation"; each loss is the mean of left and right (Eq. 12, 13)."""
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [9.0, -9.0]]])
    labels = torch.tensor([[0, 1], [1, -1]])
    weights = torch.tensor([0.5, 1.5])
    entropy = -logits.log_softmax(-1)
    left = (0.5 * entropy[0, 0, 0] + 1.5 * entropy[1, 0, 1]) / 2
    expected = (left + entropy[0, 1, 1]) / 2
    given = ({"birads": logits}, {"birads": labels}, {"birads": weights}, {"diagnosis": 0.5, "birads": 0.5})
    assert total_loss(*given).item() == pytest.approx(expected.item())


def test_the_best_checkpoint_on_validation_is_kept_and_reported(trained):
    """§4.3: "the best performing checkpoint on the validation set saved"; by the mean AUC of both tasks."""
    _, metrics, epochs, _, _ = trained
    combined = epochs[["validation_diagnosis_auc", "validation_birads_auc"]].mean(axis=1)
    np.testing.assert_allclose(epochs["validation_auc"], combined)
    assert metrics["best_epoch"] == epochs["epoch"][combined.idxmax()]
    kept = metrics["parts"]["validation"]
    assert np.mean([kept["diagnosis"]["auc"], kept["birads"]["auc"]]) == pytest.approx(combined.max())
    study = load_study("config/paper.yaml")
    assert study.split.kind == "paper", "whose reported part is validation"


def test_auc_and_macro_f1_of_the_labelled_breasts(trained):
    """§4.4: AUC and F1-macro; §3.1: breasts with the label -1 are "omitted from performance evaluation"."""
    _, metrics, _, table, _ = trained
    for part, tasks in metrics["parts"].items():
        for task, found in tasks.items():
            known = table[(table["part"] == part) & (table[task] >= 0)]
            assert {"auc", "f1_macro"} < set(found) and found["n_breasts"] == len(known)
            assert (table[table["part"] == part][task] < 0).any() or task == "diagnosis"


def test_grey_in_three_channels_and_zeros_for_what_is_missing(trained):
    """§4.2: "replicated across three channels"; §3.1: "zero tensors were used to replace the absent images"."""
    *_, data = trained
    exams = data.parts["train"]
    assert not exams.present.all(), "some views are missing"
    batch = exams.batch(torch.arange(len(exams)))
    assert (batch.images[~batch.present] == 0).all()
    grey = batch.images * torch.tensor(DEVIATION).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    grey = grey[batch.present]
    assert torch.allclose(grey[:, :1].expand_as(grey), grey, atol=1e-6) and grey.std() > 0
    absent = ~batch.present.view(-1, 2, 2).any(-1)  # (B, 2): breasts without any view
    assert absent.any() and all((labels[absent] == -1).all() for labels in batch.labels.values())


def test_right_breasts_are_flipped_and_left_ones_not(small_study, in_small_project):
    """§3.1: "All images from the right breast were horizontally flipped"."""
    store, cohort = load_store(small_study.folder / "store"), load_cohort(small_study.folder / "cohort")
    usual = store.index[~store.index["image"].isin(cohort.images.loc[cohort.images["mirrored"], "image"])]
    assert (usual["flipped"] == (usual["side"] == "R")).all() and set(usual["view"]) == set(VIEWS)
    for side in ("L", "R"):
        row = usual[usual["side"] == side].iloc[0]
        path = small_study.data_folder / row["path"]
        as_stored = prepare_image(path, "L", small_study.images.size).pixels
        expected = as_stored[:, ::-1] if side == "R" else as_stored
        assert np.array_equal(store.images[row.name], expected), side


def test_normal_and_benign_are_one_class(small_study, in_small_project):
    """§3.1: "normal and benign cases were grouped under a single class (label 0)"."""
    exams = load_cohort(small_study.folder / "cohort").exams
    classes = pd.concat([exams["L_class"], exams["R_class"]])
    labels = pd.concat([exams["L_diagnosis"], exams["R_diagnosis"]])
    found = {name: set(labels[classes == name]) for name in set(classes)}
    assert found == {"normal": {0}, "benign": {0}, "malignant": {1}, "": {-1}}
