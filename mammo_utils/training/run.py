"""One run from its specification to its files, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from mammo_utils.config import ParameterError, Training
from mammo_utils.data.cohort import load_cohort
from mammo_utils.data.split import check_split, load_split, make_split, select_subset
from mammo_utils.images.store import Outline, Store, load_store, stored_outlines
from mammo_utils.io import atomic_write, display_path, folder_lock, read_json, write_json
from mammo_utils.metrics import METRICS, softmax
from mammo_utils.models.system import System, build_system
from mammo_utils.prepared import check_prepared
from mammo_utils.provenance import environment, file_hash, hash_of, training_code
from mammo_utils.study import RunSpec
from mammo_utils.training import run_state
from mammo_utils.training.dataset import ExamSet, derive_seed, make_exam_set, place_images
from mammo_utils.training.distributed import rank_and_size, run_distributed
from mammo_utils.training.loop import prepare_model, train
from mammo_utils.training.memory import TrainingError, precision
from mammo_utils.training.predict import prediction_table
from mammo_utils.training.saliency import outlined_views, saliency_maps, save_maps
from mammo_utils.training.views import Features, classify, count_subsets, encode, save_features, subset_predictions
from mammo_utils.vocabulary import SUBSETS, TASKS


@dataclass(frozen=True)
class RunData:
    """What one run trains on.

    Attributes:
        parts: Part of the split -> its exams.
        reported: The part whose metrics are reported.
        hash: Of the images, the split and the labels.
        synthetic: Whether the exams are synthetic.
        outlines: (exam, view) -> its outlined lesions.
    """

    parts: dict[str, ExamSet]
    reported: str
    hash: str
    synthetic: bool
    outlines: dict[tuple[str, str], list[Outline]] = field(default_factory=dict)


def build(spec: RunSpec, purpose: str = "weights") -> System:
    """The run's system with its initial weights, a function of the specification and the purpose alone."""
    torch.manual_seed(derive_seed(purpose, spec.seed))
    return build_system(spec.system, spec.model, task_mode=spec.task_mode, n_birads=len(SUBSETS[spec.subset]))


def load_data(spec: RunSpec, device: torch.device | str = "cpu", store: Store | None = None) -> RunData:
    """Load the run's exams: the study's final cohort, image store and split, which notebook 02 has written.

    Args:
        spec: The run.
        device: The device to train on.
        store: The store; the study's if None.

    Raises:
        FileNotFoundError: Notebook 02 has not run.
        DataError: The split belongs to other data, has a patient in two parts, or was made with other settings, as were
            the images.
        ValueError: A part of the split has no exam of the subset, or the training part no label of a task.
    """
    folder = spec.folder.parents[1]
    for name in ("cohort", "split.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{display_path(folder / name)} is missing; run notebook 02_preprocessing first.")
    cohort, split = load_cohort(folder / "cohort"), load_split(folder / "split.json")
    store = store or load_store(folder / "store")
    check_split(split, cohort, store.hashes)
    check_prepared(folder, spec, store, split)
    if spec.split.kind == "kfold":  # the file holds one fold, and its groups, which have been checked
        split = make_split(cohort.exams, split.groups, **spec.split.model_dump())
        check_split(split, cohort, store.hashes)
    exams = select_subset(cohort.exams, spec.subset, spec.subset_rule)
    part = split.part.loc[exams.index]
    images = place_images(store, device, spec.training.store)
    parts = {
        name: make_exam_set(exams[part == name], split.groups, store, SUBSETS[spec.subset], device, images)
        for name in ("train", "validation", "test")
        if (part == name).any()
    }
    for name in ("train", "validation"):
        if name not in parts:
            raise ValueError(f"The {name} part of the split has no exam of the subset {spec.subset}; add exams.")
    for task in TASKS if spec.task_mode == "multi" else (spec.task_mode,):
        if not (parts["train"].labels[task] >= 0).any():
            raise ValueError(f"{cohort.name} has no {task} label in the training part; choose another task_mode.")
    content = hash_of([store.hash, split.hash, pd.util.hash_pandas_object(exams).tolist()])
    return RunData(parts, split.reported, content, cohort.synthetic, stored_outlines(cohort.lesions, store))


def train_run(
    spec: RunSpec, on_epoch: Callable[[dict[str, Any]], None] = lambda row: None, data: RunData | None = None
) -> dict[str, Any]:
    """Train one run, write its files into ``spec.folder`` and return its metrics.

    A finished run is trained again only if its data have changed or a file is damaged. A half-done run continues after
    its last epoch.

    Args:
        spec: The run.
        on_epoch: Called with each epoch's row (see `loop.train`).
        data: What `load_data` returned for this run and its device; loaded here if None.

    Raises:
        ParameterError: The folder holds a finished run with other settings.
    """
    device = pick_device(spec.training)
    with folder_lock(spec.folder):
        data = data or load_data(spec, device if spec.training.processes == 1 else "cpu")
        state = run_state.saved_results(spec.folder, spec, data.hash)
        run_state.refuse_other_settings(spec, state)
        if state and not state.to_train:
            return read_json(spec.folder / run_state.METRICS)
        record = {**spec.model_dump(mode="json"), "run": spec.id, "hash": spec.hash, "data_hash": data.hash}
        # a file named .*.part is what a killed process was writing
        for outdated in (spec.folder / run_state.METRICS, *spec.folder.glob(".*.part")):
            outdated.unlink(missing_ok=True)
        if run_state.failure(spec):
            spec.outcome.unlink()
        if run_state.config_hash(spec.folder) != spec.hash:
            (spec.folder / run_state.PROGRESS).unlink(missing_ok=True)
        write_json(spec.folder / "config.json", record)
        if spec.training.processes == 1:
            train_and_save(on_epoch, spec, data, device)
        else:
            cuda = device.type == "cuda"
            run_distributed(_train_rank, spec.training.processes, (spec,), on_epoch, (TrainingError,), cuda)
        for temporary in (run_state.CHECKPOINT, run_state.PROGRESS):
            (spec.folder / temporary).unlink(missing_ok=True)
    return read_json(spec.folder / run_state.METRICS)


def _train_rank(on_epoch: Callable[[dict[str, Any]], None], spec: RunSpec) -> None:
    """One of several processes of a run's training."""
    device = pick_device(spec.training)
    device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    train_and_save(on_epoch, spec, load_data(spec, device), device)


def train_and_save(
    on_epoch: Callable[[dict[str, Any]], None], spec: RunSpec, data: RunData, device: torch.device
) -> None:
    """Train the run's system and write the files of its folder, `metrics.json` last.

    Args:
        on_epoch: Called with each epoch's row.
        spec: The run.
        data: Its exams, on `device`.
        device: Where to train.
    """
    if device.type == "cpu":
        torch.set_num_threads(spec.training.threads)
    first = rank_and_size()[0] == 0
    model = prepare_model(build(spec).to(device), spec.training)
    facts = environment(device_name(device), torch.get_num_threads() if device.type == "cpu" else None)
    facts |= {
        "code": training_code(model.backend),
        "scan": model.backend,
        "precision": precision(device, spec.training),
    }
    if first:
        write_json(spec.folder / "environment.json", facts)
    log = _open_tensorboard(spec) if first and spec.training.tensorboard else None

    def report_epoch(row: dict[str, Any]) -> None:
        if first:
            progress = {"epochs": row["epoch"], "of": spec.training.epochs, "seconds": row["seconds"]}
            write_json(spec.folder / run_state.PROGRESS, progress)
            _append_epoch(spec.folder / "epochs.csv", row)
        for name in ("loss", *(name for name in row if name.endswith("auc"))) if log else ():
            log.add_scalar(name, row[name], row["epoch"])
        on_epoch(row)

    # a state made by another device, library or kernel would give results that no uninterrupted run can reproduce
    made_by = {"code": facts["code"], "device": facts["device"], "torch": str(torch.__version__)}
    made_by |= {"scan": model.backend, "numba": facts["versions"].get("numba", "")}
    made_by |= {"cpu": torch.backends.cpu.get_cpu_capability()} if device.type == "cpu" else {}
    rows, best_epoch = train(
        model,
        data.parts,
        spec.training,
        learning_rate=spec.learning_rate,
        seed=spec.seed,
        checkpoint=spec.folder / run_state.CHECKPOINT,
        identity={"config": spec.hash, "data": data.hash, **made_by},
        on_epoch=report_epoch,
    )
    if log:
        log.close()
    features = {
        part: encode(model, exams, spec.training, rows[-1]["micro_batch"])
        for part, exams in data.parts.items()
        if part != "train"
    }
    if first:
        write_results(spec, model, data, rows, best_epoch, features)


def _append_epoch(path: Path, row: dict[str, Any]) -> None:
    """Keep the table of epochs up to date while a run trains, for those who watch it."""
    before = pd.read_csv(path) if row["epoch"] > 1 and path.is_file() else pd.DataFrame({"epoch": []})
    rows = [*before[before["epoch"] < row["epoch"]].to_dict("records"), row]
    with atomic_write(path) as file:
        pd.DataFrame(rows).to_csv(file, index=False)


def _open_tensorboard(spec: RunSpec) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ParameterError(
            "training.tensorboard is true, but the package tensorboard is missing; `pip install tensorboard` adds it."
        ) from error
    return SummaryWriter(str(spec.folder / "tensorboard"))


def write_results(
    spec: RunSpec, model: System, data: RunData, rows: list[dict], best_epoch: int, features: dict[str, Features]
) -> None:
    """Write the results of a trained run.

    Args:
        spec: The run.
        model: The system with the weights of its best epoch.
        data: Its exams.
        rows: One row per epoch.
        best_epoch: From 1.
        features: Part other than "train" -> its encoded views.
    """
    tables = []
    for part, encoded in features.items():
        logits, weights, _ = classify(model, encoded.views, encoded.present, spec.training.batch_size)
        tables.append(prediction_table(data.parts[part], part, logits, weights))
    predictions, reported = pd.concat(tables, ignore_index=True), data.reported
    views = subset_predictions(model, data.parts[reported], reported, features[reported], spec.training)
    with atomic_write(spec.folder / "epochs.csv") as file:
        pd.DataFrame(rows).to_csv(file, index=False)
    with atomic_write(spec.folder / "predictions.parquet") as file:
        predictions.to_parquet(file, index=False)
    with atomic_write(spec.folder / "views.parquet") as file:
        views.to_parquet(file, index=False)
    with atomic_write(spec.folder / "features.safetensors") as file:
        save_features(features[reported], file)
    write_saliency(spec, model, data, rows[-1]["micro_batch"])
    with atomic_write(spec.folder / "weights.safetensors") as file:
        save_file({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}, file)
    metrics = {
        "run": spec.id,
        "study": spec.study,
        "system": spec.system,
        "task_mode": spec.task_mode,
        "subset": spec.subset,
        "seed": spec.seed,
        "synthetic": data.synthetic,
        "reported": data.reported,
        "best_epoch": best_epoch,
        "epochs": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "parameters": sum(p.numel() for p in model.parameters()),
        "exams": {part: len(exams) for part, exams in data.parts.items()},
        "train_views": count_subsets(data.parts["train"].present),
        "parts": {part: score_part(table, data.parts[part]) for part, table in predictions.groupby("part")},
        "files": {name: file_hash(spec.folder / name) for name in run_state.FILES if (spec.folder / name).is_file()},
    }
    write_json(spec.folder / run_state.METRICS, metrics)


def write_saliency(spec: RunSpec, model: System, data: RunData, micro: int) -> None:
    """Write the saliency maps of the reported part; no file if no positive breast is outlined.

    Args:
        spec: The run.
        model: The system with the weights of its best epoch, in eval mode.
        data: Its exams.
        micro: Exams that fit into memory at a time in training.
    """
    path, exams = spec.folder / run_state.SALIENCY, data.parts[data.reported]
    path.unlink(missing_ok=True)  # of an earlier training
    chosen = outlined_views(exams, data.outlines, next(iter(model.classes)), spec.training.saliency)
    if chosen:
        untrained = build(without_download(spec), "random weights").to(exams.device).eval()
        maps = saliency_maps(model, untrained, exams, chosen, data.outlines, micro)
        with atomic_write(path) as file:
            save_maps(maps, file)


def score_part(predictions: pd.DataFrame, exams: ExamSet) -> dict[str, dict[str, float]]:
    """Task -> each metric over a part's labelled breasts, with the numbers of breasts and exams."""
    scores = {}
    for task in (task for task in TASKS if task in predictions):
        known = predictions[predictions[task] >= 0]
        classes = (0, 1) if task == "diagnosis" else exams.categories
        labels = known[task].map({c: i for i, c in enumerate(classes)}).to_numpy()
        probabilities = softmax(known[[f"{task}_logit_{c}" for c in classes]])
        scores[task] = {name: metric.value(labels, probabilities) for name, metric in METRICS.items()}
        scores[task] |= {"n_breasts": len(known), "n_exams": known["exam"].nunique()}
    return scores


# --- reading a run ----------------------------------------------------------------------------------------


def load_run(folder: Path) -> tuple[RunSpec, System]:
    """A finished run's specification, and its system with the trained weights, in eval mode, on the CPU.

    Raises:
        FileNotFoundError: The run is not finished or a file of it is damaged; the message names it.
    """
    if not (folder / run_state.METRICS).is_file():
        raise FileNotFoundError(f"{display_path(folder)} holds no finished run; run notebook 04_train for it.")
    if reason := run_state.damage(folder):
        raise FileNotFoundError(reason)
    record = read_json(folder / "config.json")
    spec = RunSpec(**{name: record[name] for name in RunSpec.model_fields})
    model = build(without_download(spec))
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return spec, model.eval()


def without_download(spec: RunSpec) -> RunSpec:
    """The specification with random initial weights in place of ImageNet's."""
    return spec.model_copy(update={"model": spec.model.model_copy(update={"weights": ""})})


def pick_device(settings: Training) -> torch.device:
    """The device of the settings; "auto" is the GPU if there is one. Raises ValueError for "cuda" without a GPU."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("training.device is cuda, but torch sees no GPU here; set it to auto or cpu.")
    return torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
