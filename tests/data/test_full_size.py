"""The whole of CMMD, 5,202 images, in headers: processor time and memory of the reader, and whether its sums are right.

`pytest -m slow tests/data/test_full_size.py -s` prints the figures.
"""

import json
import subprocess
import sys

import pytest

from mammo_utils.synthetic.release import write_release
from tests.conftest import CHECKOUT

IMAGES = 5202  # of CMMD
READ = """
import json, sys, time
from pathlib import Path
from mammo_utils.data.download import check_folder
from mammo_utils.data.exclusions import exclusion_flow
from mammo_utils.data.sources import read_cohort
from tests.fuzz import peak_memory
start = time.process_time()
cohort = read_cohort("synthetic", sys.argv[1])
seconds = time.process_time() - start
rows = exclusion_flow(cohort)
start = time.process_time()
check_folder(Path(sys.argv[1]))
print(json.dumps({
    "seconds": seconds, "check": time.process_time() - start, "megabytes": peak_memory(),
    "found": int(rows.at[0, "images"]), "left": int(rows["images_left"].iloc[-1]),
    "leaving": int(rows["images"].iloc[1:].sum()), "used": int((cohort.images["status"] == "used").sum()),
}))
"""


@pytest.mark.slow
def test_indexing_the_whole_of_cmmd(tmp_path):
    folder = tmp_path / "release"
    write_release(
        folder, n_exams=1900, rows=32, columns=32, seed=0, contrast=1.0, noise=1.0, null=False, workers=2
    )  # some 5,400 images
    files = sorted(folder.rglob("*.dcm"))
    assert len(files) >= IMAGES
    for path in files[IMAGES:]:
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    found = json.loads(done.stdout)
    print(found)
    assert found["found"] == IMAGES and found["left"] == found["used"] == IMAGES - found["leaving"]
    assert found["seconds"] <= 15 and found["check"] <= 30 and found["megabytes"] < 1024
