"""The steps of `python -m benchmarks.gpu`: each yields parts of the record as they are measured."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.__main__ import find_cpu_name
from benchmarks.epochs import ABLATIONS, PAPER_EXAMS, compare_epochs
from benchmarks.mamba_build import build_kernel
from benchmarks.measure import MEGABYTE, peak_memory, time_call
from benchmarks.scans import compare_scans, compare_ss2d
from benchmarks.steps import draw_exams, make_step, measure_steps
from mammo_utils.io import available_cpus, read_json
from mammo_utils.models.kernels.mamba_kernel import import_kernel
from mammo_utils.models.selective_scan import scan_paths
from mammo_utils.models.ss2d import SS2D, four_paths
from mammo_utils.models.system import build_system
from mammo_utils.provenance import environment, training_code
from mammo_utils.study import Study, load_study
from mammo_utils.training.loop import make_optimizer, prepare_model, train_epoch
from mammo_utils.training.predict import predict
from mammo_utils.training.run import device_name
from mammo_utils.vocabulary import REFERENCE, SYSTEMS

CHECKOUT = Path(__file__).parents[1]
TESTS = ("tests/models/test_mamba_ssm.py", "tests/models/test_triton_kernel.py")
NOTEBOOKS = ("01_data_exploration", "02_preprocessing", "04_train")


@dataclass(frozen=True)
class Plan:
    """What is measured; the defaults are for a GPU."""

    device: str = "cuda"
    size: int = 512  # pixels a side
    batch: int = 8  # exams
    rounds: int = 5
    lengths: tuple[int, ...] = (1024, 4096)  # steps of the bare scans
    channels: int = 192  # of the bare scans
    sides: tuple[int, ...] = (64, 128)  # tokens a side of SS2D
    images: int = 8  # of SS2D
    shapes: tuple[tuple[int, int], ...] = ((5, 3), (17, 17), (32, 48), (64, 64))  # tokens for the parity
    exams: int = 48  # an epoch
    batches: tuple[int, ...] = (4, 8, 16, 32)
    side: int = 64  # pixels, of the study of the notebooks
    mamba: str = ""  # source distribution of mamba-ssm

    @property
    def torch_device(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    def study(self, **training: Any) -> Study:
        """The paper's study with automatic precision and other settings of the training."""
        study = load_study("config/paper.yaml", ["name=gpu", f"training.device={self.device}"])
        changes = {"precision": "auto", "batch_size": self.batch} | training
        return study.model_copy(update={"training": study.training.model_copy(update=changes)})


TINY: dict[str, Any] = {  # for a CPU, to try the command
    "size": 32,
    "batch": 2,
    "rounds": 1,
    "lengths": (16,),
    "channels": 8,
    "sides": (4,),
    "images": 1,
    "shapes": ((3, 2),),
    "exams": 6,
    "batches": (2, 4),
    "side": 32,
}


def find_environment(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Card, driver, versions and commit."""
    facts = environment(device_name(plan.torch_device), torch.get_num_threads())
    facts |= {"cpu": find_cpu_name(), "cpus": available_cpus(), "cuda": torch.version.cuda}
    facts |= {"cudnn": torch.backends.cudnn.version(), "code": training_code("triton")}
    facts["plan"] = asdict(replace(plan, mamba=""))
    if shutil.which("nvidia-smi") and plan.device == "cuda":
        asked = "name,driver_version,memory.total,clocks.max.sm,power.limit"
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        facts["card"] = dict(zip(asked.split(","), answer.split("\n")[0].split(", "), strict=False))
    yield {"environment": facts}


def build_mamba(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Build the kernel of mamba-ssm for this card alone, unless it can be imported."""
    try:
        import_kernel()
        yield {"mamba": {"built": False, "reason": "selective_scan_cuda can be imported already"}}
        return
    except ValueError as error:
        print(error, flush=True)
    if plan.device == "cpu":
        yield {"mamba": {"built": False, "reason": "no GPU"}}
    elif not plan.mamba:
        raise ValueError("selective_scan_cuda cannot be imported; name the source of mamba-ssm by --mamba.")
    else:
        major, minor = torch.cuda.get_device_capability()
        start = time.perf_counter()
        file = build_kernel(Path(plan.mamba), folder, f"{major}{minor}")
        facts = {"built": True, "file": file.name, "source": Path(plan.mamba).name}
        yield {"mamba": facts | {"seconds": time.perf_counter() - start}}


def compare_kernels(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Largest errors of each kernel beside the reference in float64, values and gradients; then the tests."""
    rows = []
    for backend in ("mamba_ssm", "triton") if plan.device == "cuda" else ("cpu",):
        for dtype in ("float32", "bfloat16"):
            for shape in plan.shapes:
                row = {"backend": backend, "dtype": dtype, "shape": list(shape)}
                rows.append(row | _attempt(lambda b=backend, d=dtype, s=shape: measure_errors(b, d, s, plan.device)))
                yield {"parity": rows}
    tests = [name for name in TESTS if (CHECKOUT / name).is_file()]
    if plan.device == "cuda" and tests and importlib.util.find_spec("pytest"):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
        print(done.stdout, done.stderr, flush=True)
        yield {"tests": {"files": tests, "code": done.returncode, "result": (done.stdout.split("\n")[-2:] or [""])[0]}}


def measure_errors(backend: str, dtype: str, shape: tuple[int, int], device: str) -> dict[str, dict[str, float]]:
    """The scan of two images by a backend: largest error of y and of each gradient over the largest true value.

    Args:
        backend: See `scan_paths`.
        dtype: Of what varies in the image: u, delta, B and C.
        shape: Height and width.
        device: Where to compute.
    """
    batch, K, length, channels, states = 2, 4, shape[0] * shape[1], 32, 16
    shapes = [(batch, length, channels), (batch, K, length, channels), (K, channels, states)]
    shapes += [(batch, K, length, states)] * 2 + [(K, channels)] * 2
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    values[2] = -values[2].exp()
    values = [x.to(device, getattr(torch, dtype) if i in (0, 1, 3, 4) else torch.float32) for i, x in enumerate(values)]
    factor = torch.randn(shapes[0], generator=generator).to(device)

    def run(name: str, leaves: list[Tensor]) -> list[Tensor]:
        y = scan_paths(*leaves, four_paths(*shape, torch.device(device)), backend=name)
        return [x.double() for x in (y.detach(), *torch.autograd.grad((y * factor).sum(), leaves))]

    found = run(backend, [x.clone().requires_grad_() for x in values])
    true = run("reference", [x.double().requires_grad_() for x in values])
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, true, strict=True)]
    return {"errors": dict(zip("y u delta A B C D bias".split(), errors, strict=True))}


def measure_scans(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Bare scans, and SS2D beside SS2D with four copies."""
    scans: list = []
    yield {"scans": scans, "ss2d": []}
    for length in plan.lengths:
        scans += compare_scans([length], 4, plan.channels, 16, plan.rounds, plan.torch_device)
        yield {"scans": scans}
    found = []
    for dtype in ("bfloat16", "float32"):
        for side in plan.sides:
            options = {"batch": plan.images, "dtype": dtype}
            found.append(compare_ss2d(64, side, plan.rounds, plan.torch_device, **options))
            yield {"ss2d": found}


def measure_each_step(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """A training step of each system in parts."""
    found = []
    for name in SYSTEMS:
        found += measure_steps(plan.study(), plan.size, plan.batch, plan.rounds, plan.torch_device, [name])
        yield {"steps": found}


def measure_epochs(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Epochs of each system beside a naive trainer's."""
    found, workers = [], min(8, available_cpus()) if plan.device == "cuda" else 0
    rounds = min(2, plan.rounds)
    for name in SYSTEMS:
        options = (plan.size, plan.exams, rounds, plan.torch_device, workers, [name])
        found.append(compare_epochs(plan.study(), *options))
        yield {"epochs": found}


def measure_options(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Training steps of REFERENCE with options on and off.

    CUDA graphs are left out: the number of present views changes from batch to batch, and a graph has fixed shapes.
    """
    options: list[tuple[str, int, dict[str, Any]]] = [("as trained", plan.batch, {})]
    options += [(f"batches of {n}", n, {}) for n in plan.batches if n != plan.batch]
    options += [("cudnn.benchmark", plan.batch, {"benchmark": True}), ("depthwise NCHW", plan.batch, {"nchw": True})]
    options += [("channels_last off", plan.batch, {"channels_last": False})]
    options += [("float32", plan.batch, {"precision": "float32"}), ("as trained, again", plan.batch, {})]
    options += [("compiled", plan.batch, {"compile": True})] if plan.device == "cuda" else []
    rows = []
    for name, batch, changes in options:
        row = {"name": name, "system": REFERENCE, "batch": batch, "size": plan.size}
        rows.append(row | _attempt(lambda b=batch, c=changes: _measure_option(plan, b, **c)))
        yield {"options": rows}


def _measure_option(
    plan: Plan, batch: int, benchmark: bool = False, nchw: bool = False, **training: Any
) -> dict[str, float]:
    device = plan.torch_device
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = benchmark
    study = plan.study(**training)
    system = build_system(REFERENCE, study.model, weights="").to(device)
    step = make_step(system, study, plan.size, batch, device)
    if nchw:
        for module in (m for m in system.modules() if isinstance(m, SS2D)):
            module.conv.to(memory_format=torch.contiguous_format)
            module.conv.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    first = time_call(step, device)
    step()
    ms = median(time_call(step, device) for _ in range(plan.rounds))
    system.zero_grad(set_to_none=True)
    found = {"exams_per_second": 1e3 * batch / ms, "step_ms": ms, "first_step_ms": first}
    return found | {"peak_memory_mb": peak_memory(step, device)}


def run_notebooks(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Run the notebooks of a small synthetic study by papermill, in a project of their own."""
    project, rows = folder / "project", []
    shutil.rmtree(project, ignore_errors=True)
    for name in ("notebooks", "config"):
        shutil.copytree(CHECKOUT / name, project / name)
    settings = ["name=gpu", "data.folder=data/gpu", "data.synthetic={n_exams: 28, rows: 96, columns: 80, seed: 3}"]
    settings += [f"images={{size: {plan.side}, workers: 1}}", "split={kind: nested, validation: 0.25, test: 0.25}"]
    settings += [f"training={{epochs: 1, batch_size: 8, device: {plan.device}}}"]
    parameters = json.dumps({"study": "config/demo.yaml", "settings": settings})
    variables = os.environ | {"MAMMO_PROJECT": str(project), "JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": ""}
    for name in NOTEBOOKS:
        command = [sys.executable, "-m", "papermill", f"notebooks/{name}.ipynb", f"{name}.ipynb", "-k", "python3"]
        command += ["-y", parameters, "--no-progress-bar", "--log-output"]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=project, env=variables)
        row = {"name": name, "seconds": time.perf_counter() - start, "code": done.returncode}
        rows.append(row)
        yield {"notebooks": rows}
        if done.returncode:
            raise RuntimeError(f"papermill failed in the notebook {name}; see the step's log.")


def measure_repeatability(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """The largest difference of weights and of predictions between two equal runs of one epoch."""
    rows, device = [], plan.torch_device
    for name in dict.fromkeys(("resnet18", REFERENCE)):
        for precision in ("bfloat16", "float32"):
            settings, found = plan.study(precision=precision).training, []
            for _ in range(2):
                torch.manual_seed(0)
                model = prepare_model(build_system(name, plan.study().model, weights="").to(device), settings)
                exams = draw_exams(model.classes, plan.size, plan.exams, device)
                weights = {task: torch.ones(n, device=device) for task, n in model.classes.items()}
                optimizer = make_optimizer(model, settings, SYSTEMS[name].learning_rate)
                loss, _ = train_epoch(model, exams, optimizer, weights, settings, 0, 1, plan.batch)
                logits, _ = predict(model, exams, settings)
                flat = torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])
                found.append((flat.numpy(), np.concatenate([p.ravel() for p in logits.values()]), loss))
            (w, p, loss), (v, q, other) = found
            row = {"system": name, "precision": precision, "exams": plan.exams, "loss": abs(loss - other)}
            rows.append(row | {"weights": float(abs(w - v).max()), "predictions": float(abs(p - q).max())})
            yield {"repeatability": rows}


def measure_memory(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Peak memory of building and training each system: weights, optimiser and a batch of images included."""
    rows = []
    for name in SYSTEMS:
        for precision in ("bfloat16", "float32"):
            row = {"system": name, "precision": precision, "size": plan.size, "batch": plan.batch}
            rows.append(row | _attempt(lambda n=name, p=precision: _measure_training(plan, n, p)))
            yield {"memory": rows}


def _measure_training(plan: Plan, name: str, precision: str) -> dict[str, float]:
    study, device = plan.study(precision=precision), plan.torch_device

    def train() -> None:
        system = build_system(name, study.model, weights="").to(device)
        step = make_step(system, study, plan.size, plan.batch, device)
        step()
        step()  # with the state of the optimiser, which the first one makes

    if device.type == "cpu":
        return {"peak_mb": peak_memory(train, device)}
    torch.cuda.empty_cache()
    return {"peak_mb": peak_memory(train, device), "reserved_mb": torch.cuda.max_memory_reserved() / MEGABYTE}


def project_hours(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Hours of the paper's runs at the rates of the step "epochs"; the validation after each epoch is not included."""
    epochs = folder / "epochs.json"
    parts = read_json(epochs).get("result", {}).get("epochs", []) if epochs.is_file() else []
    rates = {found["system"]: found["rows"][-2:] for part in parts for found in part["systems"]}
    study = load_study("config/paper.yaml")
    if missing := {run.system for run in study.runs()} - set(rates):
        raise ValueError(f"The step 'epochs' has not measured {', '.join(sorted(missing))}; run it first.")
    hours = {}
    for index, (name, _) in enumerate(ABLATIONS[-2:]):
        passes = [1 / rates[run.system][index]["exams_per_second"] for run in study.runs()]
        name = "float32" if index == 0 else name.removeprefix("+ ")
        hours[name] = sum(passes) * study.training.epochs * PAPER_EXAMS / 3600
    facts = {"runs": len(study.runs()), "epochs": study.training.epochs, "exams": PAPER_EXAMS, "size": plan.size}
    yield {"projection": facts | {"hours": hours, "synthetic": True}}


def _attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` returns, or its error: one option that fails does not stop the others."""
    try:
        return measure()
    except Exception as error:  # compilers and packages for GPUs raise whatever they like
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


STEPS: dict[str, tuple[Callable[..., Iterator[dict[str, Any]]], float]] = {  # at most so many of 25 minutes
    "environment": (find_environment, 1),
    "mamba": (build_mamba, 9),
    "parity": (compare_kernels, 5),
    "scans": (measure_scans, 3),
    "steps": (measure_each_step, 3),
    "epochs": (measure_epochs, 6),
    "options": (measure_options, 6),
    "notebooks": (run_notebooks, 6),
    "repeat": (measure_repeatability, 2),
    "memory": (measure_memory, 3),
    "projection": (project_hours, 1),
}
