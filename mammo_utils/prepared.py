"""The records of the settings by which a study's cohort, images and split were made.

Notebook 02 writes it last. Training compares it with the run's settings, so that a run is never recorded with an image
size, a split or a data source that its data do not have.
"""

from __future__ import annotations

from pathlib import Path

from mammo_utils.data.cohort import DataError
from mammo_utils.data.split import Split
from mammo_utils.images.store import Store, save_thumbnails
from mammo_utils.io import display_path, read_json, write_json
from mammo_utils.provenance import folder_hash
from mammo_utils.study import FREE, PREPARED, RunSpec, Study, flatten

RECORD = "prepared.json"


def save_found(study: Study) -> None:
    """Record the settings by which notebook 01 has read the data."""
    write_json(study.folder / "found" / "settings.json", _settings(study, "data"))


def check_found(study: Study) -> None:
    """Raise DataError if notebook 01 has read the data by other settings than the study's."""
    file = study.folder / "found" / "settings.json"
    then, now = read_json(file) if file.is_file() else {}, _settings(study, "data")
    for name in now:
        if then.get(name) != now[name]:
            raise DataError(
                f"Notebook 01 read the data with {name} = {then.get(name)!r}, but the study has {now[name]!r}; run "
                "notebook 01 again."
            )


def save_prepared(study: Study, store: Store, split: Split) -> None:
    """Record the settings by which the study's data were prepared, and thumbnails that outlive the store.

    The record has the hashes of the cohort, the store and the split.

    Args:
        study: The study.
        store: Its image store.
        split: Its split.
    """
    save_thumbnails(store, study.folder / "thumbnails")
    values = {"settings": _settings(study), **_hashes(study.folder, store, split)}
    write_json(study.folder / RECORD, values)


def check_prepared(folder: Path, spec: RunSpec, store: Store, split: Split) -> None:
    """Compare the settings of a run with those by which the study's data were prepared.

    Args:
        folder: The study's folder.
        spec: The run.
        store: The study's image store.
        split: The study's split.

    Raises:
        DataError: They differ, or the store or the split is not the one that was recorded.
    """
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if not isinstance(record, dict) or not record.items() >= _hashes(folder, store, split).items():
        raise DataError(
            f"The cohort, the images or the split in {display_path(folder)} are not those that notebook 02 wrote last; "
            "run notebook 02 again."
        )
    then, now = record["settings"], _settings(spec)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            raise DataError(
                f"{display_path(folder)} was prepared with {name} = {then.get(name)!r}, but the run has "
                f"{now.get(name)!r}; run notebooks 01 and 02 with the run's settings. To keep the runs of this "
                'study, add the setting "name=mine".'
            )


def _hashes(folder: Path, store: Store, split: Split) -> dict[str, str]:
    return {"cohort": folder_hash(folder / "cohort"), "store": store.hash, "split": split.hash}


def _settings(settings: Study | RunSpec, *sections: str) -> dict[str, object]:
    values = flatten(settings.model_dump(mode="json", include=set(sections or PREPARED)))
    free = (*FREE, "split.fold") if settings.split.kind == "kfold" else FREE  # one preparation serves all folds
    return {name: value for name, value in values.items() if name not in free}
