"""The pictures of a study's pages: each is kept once, in the folder `html/pictures`, as WebP."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageFilter

from mammo_utils.io import atomic_write
from mammo_utils.plots.save import read_manifest
from mammo_utils.workflow.pages import TEMPLATES

PICTURES = "pictures"
# Two copies of a figure in different resolution differ by up to 12.5 in the demo. Figures of one cell may be more
# alike, so the nearest of them is taken.
ALIKE = 14.0  # mean difference in grey levels, after blurring
SAVED = re.compile(r'\bsave(?:_figure)?\(.*?,\s*f?"([^"\n]+)"', re.DOTALL)  # the name of a figure that a cell saves
SAME_SHAPE = 0.03  # largest difference in height, as a share of it: text is a little wider in one resolution


@dataclass(frozen=True)
class Picture:
    """A picture as a page shows it: its address in the folder `html`, its size in pixels, and what it shows."""

    address: str
    width: int
    height: int
    alt: str


class Pictures:
    """Pictures of the pages of one study.

    Attributes:
        figures: Entries of the manifest of the study's figures, by name without suffix.
    """

    def __init__(self, study_folder: Path):
        """`study_folder` has the folders `figures` and `html`."""
        self.source, self.pages = study_folder / "figures", study_folder / "html"
        self.figures = saved_figures(self.source)
        self.looks = {name: _look((self.source / e["figure"]).read_bytes()) for name, e in self.figures.items()}

    def figure(self, name: str) -> Picture:
        """One of the study's figures."""
        entry = self.figures[name]
        return self._keep((self.source / entry["figure"]).read_bytes(), name, describe(entry))

    def of_notebook(self, png: bytes, notebook: str, source: str, described: str = "") -> tuple[Picture, str]:
        """A picture in the output of a notebook, and its caption.

        If the cell also saved it as a figure, that copy is shown: it has the higher resolution.

        Args:
            png: The picture.
            notebook: Name of the notebook.
            source: The code of its cell, which names the figures that it saves.
            described: What a picture shows that is not saved.
        """
        if name := self.matching(png, notebook, source):
            return self.figure(name), self.figures[name]["caption"]
        return self._keep(png, "output", described or "Figure"), described

    def matching(self, png: bytes, notebook: str, source: str) -> str:
        """Name of the figure, among those that a cell saves, that shows the same as its picture; "" if none does.

        Args:
            png: The picture in the cell's output.
            notebook: Name of the notebook.
            source: The code of the cell.
        """
        names = [re.sub(r"\\\{.*?\\\}", ".+", re.escape(name)) for name in SAVED.findall(source)]
        (width, height), seen = _look(png)
        distances = {
            name: float(np.abs(look - seen).mean())
            for name, ((columns, rows), look) in self.looks.items()
            if self.figures[name]["notebook"] == notebook
            and any(re.fullmatch(known, name) for known in names)
            and abs(rows - height * columns / width) <= SAME_SHAPE * rows
        }
        name = min(distances, key=distances.__getitem__, default="")
        return name if name and distances[name] < ALIKE else ""

    def _keep(self, png: bytes, name: str, alt: str) -> Picture:
        """Write the picture unless it is there."""
        image = Image.open(io.BytesIO(png))
        address = f"{PICTURES}/{name}-{hashlib.sha256(png).hexdigest()[:8]}.webp"
        if not (self.pages / address).is_file():
            (self.pages / PICTURES).mkdir(parents=True, exist_ok=True)
            with atomic_write(self.pages / address) as temporary:
                temporary.write_bytes(compress(image))
        return Picture(address, *image.size, alt)

    def remove_unused(self) -> None:
        """Remove the pictures that no page in the folder shows."""
        shown = {name for page in self.pages.glob("*.html") for name in re.findall(r"[^/\"]+\.webp", page.read_text())}
        for file in (self.pages / PICTURES).glob("*.webp"):
            if file.name not in shown:
                file.unlink()


def saved_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Name without suffix -> entry in the manifest, of each figure in a folder."""
    return {Path(e["figure"]).stem: e for e in read_manifest(folder) if (folder / e["figure"]).is_file()}


def compress(image: Image.Image) -> bytes:
    """The image on white as WebP: lossless, except images of tissue, where quality 92 looks the same and is smaller."""
    opaque = Image.new("RGB", image.size, "white")
    opaque.paste(image, mask=image.convert("RGBA").getchannel("A"))
    lossless, lossy = io.BytesIO(), io.BytesIO()
    opaque.save(lossless, "WEBP", lossless=True, quality=60, method=4)
    opaque.save(lossy, "WEBP", quality=92, method=4)
    return (lossy if lossy.tell() < 0.75 * lossless.tell() else lossless).getvalue()


def figure_html(picture: Picture, caption: str = "", id_: str = "") -> Markup:
    """Write a picture with its caption as HTML.

    Args:
        picture: The picture.
        caption: What the reader sees in it.
        id_: Anchor of the figure.
    """
    return Markup(TEMPLATES.get_template("figure.html.j2").render(picture=picture, caption=caption, id=id_))


def describe(entry: dict[str, Any]) -> str:
    """Describe a figure for readers who cannot see it, from its entry in the manifest."""
    module, _, function = entry["drawn_by"].partition(":")
    drawn = what_is_drawn(module, function)
    return ". ".join(text.rstrip(".") for text in (drawn, entry["caption"]) if text) or entry["figure"]


def what_is_drawn(module: str, function: str) -> str:
    """The first sentence of the description of a drawing function, without its verb; "" if there is none."""
    try:
        sentence = (getdoc(getattr(import_module(module), function)) or "").split("\n")[0]
    except (ImportError, AttributeError, ValueError):
        return ""
    found = re.sub(r"^Draw (the |an? )?", "", sentence).replace("`", "").strip()
    return found[:1].upper() + found[1:]


def _look(png: bytes) -> tuple[tuple[int, int], np.ndarray]:
    """Size of a picture, and the picture without what differs between two resolutions of one figure."""
    image = Image.open(io.BytesIO(png))
    small = image.convert("RGB").resize((128, 128), Image.Resampling.BOX)
    return image.size, np.asarray(small.filter(ImageFilter.GaussianBlur(1.5)), dtype=float)
