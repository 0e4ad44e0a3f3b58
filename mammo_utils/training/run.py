"""One run from its specification to its files, and back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from mammo_utils.config import RunSpec, Training
from mammo_utils.data.cohort import load_cohort
from mammo_utils.data.split import check_split, load_split, select_subset
from mammo_utils.images.build_store import apply_store
from mammo_utils.images.store import load_store
from mammo_utils.io import atomic_write, display_path, folder_lock, read_json, write_json
from mammo_utils.metrics import auc, f1_macro
from mammo_utils.models.system import System, build_system
from mammo_utils.provenance import environment, file_hash, hash_of, training_code
from mammo_utils.training.dataset import ExamSet, derive_seed, make_exam_set, place_images
from mammo_utils.training.distributed import rank_and_size, run_distributed
from mammo_utils.training.loop import TrainingError, precision, predict, prediction_table, prepare_model, train
from mammo_utils.vocabulary import SUBSETS

FILES = (
    "config.json",
    "environment.json",
    "epochs.csv",
    "predictions.parquet",
    "weights.safetensors",
    "metrics.json",
)


@dataclass(frozen=True)
class RunData:
    """What one run trains on: part -> exams, the part that is reported, and a hash of all of it."""

    parts: dict[str, ExamSet]
    reported: str
    hash: str
    synthetic: bool


def build(spec: RunSpec) -> System:
    """The run's system with its first weights: a function of the specification alone."""
    torch.manual_seed(derive_seed("weights", spec.seed))
    return build_system(spec.system, spec.model, task_mode=spec.task_mode, n_birads=len(SUBSETS[spec.subset]))


def load_data(spec: RunSpec, device: torch.device | str = "cpu") -> RunData:
    """Read the study's exam table, store and split, and put the run's exams on a device.

    Raises FileNotFoundError with one sentence where notebooks 01 and 02 have not left them, DataError where the split
    is not of these data or leaks.
    """
    folder = spec.folder.parents[1]
    for name, notebook in (("exams.parquet", "01"), ("split.json", "02")):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{display_path(folder / name)} is missing; run notebook {notebook} of the study first."
            )
    store, split = load_store(folder / "store"), load_split(folder / "split.json")
    cohort = apply_store(load_cohort(folder), store)
    check_split(split, cohort, store.hashes)
    exams = select_subset(cohort.exams, spec.subset, spec.subset_rule)
    exams = exams[exams.index.isin(split.part.index)]  # twins in conflict are in no part
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
    tasks = ("diagnosis", "birads") if spec.task_mode == "multi" else (spec.task_mode,)
    for task in tasks:
        if not (parts["train"].labels[task] >= 0).any():
            raise ValueError(f"{cohort.name} has no {task} label in the training part; choose another task_mode.")
    identity = hash_of([store.hash, split.hash, pd.util.hash_pandas_object(exams).tolist()])
    return RunData(parts, split.reported, identity, cohort.synthetic)


def train_run(
    spec: RunSpec, on_epoch: Callable[[dict[str, Any]], None] = lambda row: None, data: RunData | None = None
) -> dict[str, Any]:
    """Train one run and leave its files in ``spec.folder``; returns its metrics.

    data: what :func:`load_data` gave for this run and its device, if it is there already.
    metrics.json is written last: where it stands and its configuration and data are those asked for, the run
    is finished and nothing is done again. A half-done run goes on from its last epoch.
    """
    device = pick_device(spec.training)
    with folder_lock(spec.folder):
        data = data or load_data(spec, device if spec.training.processes == 1 else "cpu")
        record = {**spec.model_dump(mode="json"), "run": spec.id, "hash": spec.hash, "data_hash": data.hash}
        if finished(spec.folder, record):
            return read_json(spec.folder / "metrics.json")
        if not spec.begun:
            (spec.folder / "progress.json").unlink(missing_ok=True)
        for left in (spec.folder / "metrics.json", spec.folder / "failed.json", *spec.folder.glob(".*.part")):
            left.unlink(missing_ok=True)  # parts are what a killed process was writing
        write_json(spec.folder / "config.json", record)
        if spec.training.processes == 1:
            train_and_save(on_epoch, spec, data, device)
        else:
            run_distributed(work, spec.training.processes, (spec,), on_epoch, (TrainingError,), device.type == "cuda")
        for left in ("checkpoint.pt", "progress.json"):
            (spec.folder / left).unlink(missing_ok=True)
    return read_json(spec.folder / "metrics.json")


def work(on_epoch: Callable[[dict[str, Any]], None], spec: RunSpec) -> None:
    """One process of a run's training."""
    device = pick_device(spec.training)
    device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    train_and_save(on_epoch, spec, load_data(spec, device), device)


def train_and_save(
    on_epoch: Callable[[dict[str, Any]], None], spec: RunSpec, data: RunData, device: torch.device
) -> None:
    """Train the run's system and write the files of its folder, metrics.json the very last."""
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

    def told(row: dict[str, Any]) -> None:
        if first:
            progress = {"epochs": row["epoch"], "of": spec.training.epochs, "seconds": row["seconds"]}
            write_json(spec.folder / "progress.json", progress)
        on_epoch(row)

    # a state made on another device or by other kernels would go on to numbers that no machine gives from the start
    made_by = {"code": training_code(model.backend), "device": device_name(device), "torch": str(torch.__version__)}
    made_by |= {"scan": model.backend, "numba": facts["versions"].get("numba", "")}
    made_by |= {"cpu": torch.backends.cpu.get_cpu_capability()} if device.type == "cpu" else {}
    rows, best_epoch = train(
        model,
        data.parts,
        spec.training,
        learning_rate=spec.learning_rate,
        seed=spec.seed,
        checkpoint=spec.folder / "checkpoint.pt",
        identity={"config": spec.hash, "data": data.hash, **made_by},
        on_epoch=told,
    )
    tables = [
        prediction_table(exams, part, *predict(model, exams, spec.training, rows[-1]["micro_batch"]))
        for part, exams in data.parts.items()
        if part != "train"
    ]
    if first:
        write_results(spec, model, data, rows, best_epoch, pd.concat(tables, ignore_index=True))


def write_results(
    spec: RunSpec, model: System, data: RunData, rows: list[dict], best_epoch: int, table: pd.DataFrame
) -> None:
    """The run's last files; table: its predictions."""
    with atomic_write(spec.folder / "epochs.csv") as file:
        pd.DataFrame(rows).to_csv(file, index=False)
    with atomic_write(spec.folder / "predictions.parquet") as file:
        table.to_parquet(file, index=False)
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
        "parts": {part: scores(rows_of, data.parts[part]) for part, rows_of in table.groupby("part")},
        "weights": file_hash(spec.folder / "weights.safetensors"),
    }
    write_json(spec.folder / "metrics.json", metrics)


def scores(table: pd.DataFrame, exams: ExamSet) -> dict[str, dict[str, float]]:
    """AUC and macro F1 of each active task over a part's breasts, with the numbers they rest on."""
    result = {}
    for task in ("diagnosis", "birads"):
        if task not in table:
            continue
        known = table[table[task] >= 0]
        if task == "diagnosis":
            p = known["diagnosis_p"].to_numpy()
            labels, probabilities = known[task].to_numpy(), pd.DataFrame({0: 1 - p, 1: p}).to_numpy()
        else:
            labels = known[task].map({c: i for i, c in enumerate(exams.categories)}).to_numpy()
            probabilities = known[[f"birads_p{c}" for c in exams.categories]].to_numpy()
        result[task] = {
            "auc": auc(labels, probabilities),
            "f1_macro": f1_macro(labels, probabilities),
            "n_breasts": len(known),
            "n_exams": known["exam"].nunique(),
        }
    return result


# --- reading a run back ---------------------------------------------------------------------------------


def load_run(folder: Path) -> tuple[RunSpec, System]:
    """A finished run's specification and its system with the trained weights, in eval mode, on the CPU.

    Raises FileNotFoundError naming the file that a finished run would have.
    """
    for name in ("metrics.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{display_path(folder)} has no {name}: the run is not finished; run 04_train for it."
            )
    spec = load_spec(folder)
    without_download = spec.model_copy(update={"model": spec.model.model_copy(update={"weights": ""})})
    model = build(without_download)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return spec, model.eval()


def load_spec(folder: Path) -> RunSpec:
    """The specification that a run's config.json holds."""
    record = read_json(folder / "config.json")
    return RunSpec(**{name: record[name] for name in RunSpec.model_fields})


def finished(folder: Path, record: dict[str, Any]) -> bool:
    """Whether all files of a run are there and its configuration and data are those of `record`."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    old = read_json(folder / "config.json")
    return all(old.get(name) == record[name] for name in ("hash", "data_hash"))


def remove_run(folder: Path) -> None:
    """Delete a run's folder, to train it anew."""
    shutil.rmtree(folder, ignore_errors=True)


def pick_device(settings: Training) -> torch.device:
    """`auto` takes the GPU where there is one. Raises ValueError where "cuda" is asked for and is not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("training.device is cuda, but torch sees no GPU here; set it to auto or cpu.")
    return torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
