"""The study's page counts the final cohort."""

import shutil

from mammo_utils.data.cohort import load_cohort, save_cohort
from mammo_utils.data.exclusions import exclude_images
from mammo_utils.workflow.report import index_page


def test_the_page_shows_the_exclusions_of_notebook_02(small_study, in_small_project):
    final = small_study.folder / "cohort"
    cohort = load_cohort(final)
    path = cohort.images.loc[cohort.images["status"] == "used", "path"].iloc[0]
    used = (cohort.images["status"] == "used").sum()
    assert f"{used} images used" in index_page(small_study, [])
    shutil.copytree(final, final.with_name("kept"))
    try:
        save_cohort(exclude_images(cohort, {path: "every pixel is 0"}), final)
        page = index_page(small_study, [])
    finally:
        shutil.rmtree(final)
        final.with_name("kept").rename(final)
    assert f"{used - 1} images used" in page and "every pixel is 0" in page
