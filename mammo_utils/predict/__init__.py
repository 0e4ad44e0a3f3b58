"""Point trained runs at exams: `python -m mammo_utils.predict RUN_OR_STUDY FOLDER_OR_FILES --out DIR`.

In Python:

    from mammo_utils.predict import load_run, predict
    model = load_run("results/demo")
    table = predict(model, "folder/with/exams")
"""

from mammo_utils.predict.model import Model, load_run
from mammo_utils.predict.table import predict

__all__ = ["Model", "load_run", "predict"]
