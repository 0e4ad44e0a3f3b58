"""The study's page counts what is left once pixels were decoded and twins found."""

import shutil

from mammo_utils.data.cohort import load_cohort, save_cohort
from mammo_utils.data.exclusions import exclude_images
from mammo_utils.workflow.report import index_page


def test_the_page_shows_the_fates_after_notebook_02(small_study, in_small_project):
    cohort = load_cohort(small_study.folder)
    path = cohort.images.loc[cohort.images["status"] == "used", "path"].iloc[0]
    used = (cohort.images["status"] == "used").sum()
    assert f"{used} images used" in index_page(small_study, [])
    try:
        save_cohort(exclude_images(cohort, {path: "every pixel is 0"}), small_study.folder / "fates")
        page = index_page(small_study, [])
    finally:
        shutil.rmtree(small_study.folder / "fates")
    assert f"{used - 1} images used" in page and "every pixel is 0" in page
