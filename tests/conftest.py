"""Shared by all tests: one thread a process, and one small study prepared once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import shutil
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # read when Triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mammo_utils.io import project_root
from mammo_utils.study import Study, load_study

torch.set_num_threads(1)

CHECKOUT = project_root()
SHARED = CHECKOUT.parent / "shared"
SMALL = (
    "name=small",
    "data.source=synthetic",
    "data.folder=data/small",
    "data.synthetic={n_exams: 28, rows: 96, columns: 80, seed: 3}",
    "images={size: 32, workers: 1}",
    "split={kind: nested, seed: 0, validation: 0.25, test: 0.25}",
    "model={}",
    "training={epochs: 1, batch_size: 8, device: cpu, saliency: 2}",
    "evaluation.resamples=50",
)


def pytest_collection_modifyitems(items):
    """The longest file first: of two processes one takes it, and neither is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_study.py")


def prepare(study: Study) -> Study:
    """Write what notebooks 01 and 02 write for a synthetic study: cohort, store and split."""
    from mammo_utils.data.cohort import save_cohort
    from mammo_utils.data.exclusions import exclude_conflicting_duplicates
    from mammo_utils.data.sources import read_cohort
    from mammo_utils.data.split import make_split, patient_groups
    from mammo_utils.images.build_store import apply_store, build_store
    from mammo_utils.prepared import save_found, save_prepared
    from mammo_utils.synthetic.release import write_release

    write_release(study.data_folder, **study.data.synthetic.model_dump(), workers=study.images.workers)
    cohort = read_cohort("cmmd", study.data_folder, cohort=study.data.cohort)
    save_cohort(cohort, study.folder / "found")
    save_found(study)
    store = build_store(cohort, study.folder / "store", **study.images.model_dump())
    cohort = exclude_conflicting_duplicates(apply_store(cohort, store), store.hashes, study.data.conflicts)
    save_cohort(cohort, study.folder / "cohort")
    split = make_split(cohort.exams, patient_groups(cohort, store.hashes), **study.split.model_dump())
    split.save(study.folder / "split.json")
    save_prepared(study, store, split)
    return study


@pytest.fixture(scope="session")
def small_project(tmp_path_factory) -> Path:
    """A project folder of its own: the study files, and room for data and results."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(CHECKOUT / "config", root / "config")
    return root


@pytest.fixture
def in_small_project(small_project, monkeypatch) -> Path:
    monkeypatch.setenv("MAMMO_PROJECT", str(small_project))
    return small_project


@pytest.fixture(scope="session")
def small_study(small_project) -> Study:
    """The paper's study, all 54 runs, shrunk; prepared but not trained. Use it with `in_small_project`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMMO_PROJECT", str(small_project))
        return prepare(load_study("config/paper.yaml", SMALL))
