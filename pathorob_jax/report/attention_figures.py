"""Figures of slides as classifiers see them: attention, and the score of each patch.

The tables are those that ``evaluation.attention_maps`` wrote.
"""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from absl import logging
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.Image import Dither

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.report import figure_files, figure_layout
from pathorob_jax.report.section import encode_name
from pathorob_jax.results.attention_files import (
    ATTENTION,
    FOLDER,
    SCORE,
    AttentionMap,
    X,
    Y,
    read_attention,
)

# Slides that are drawn of each classifier, and classes that are drawn of a slide.
MAX_SLIDES, MAX_CLASSES = 4, 3
# Bytes of a picture inside the page, and of all of them.
MAX_BYTES, MAX_INSIDE = 60_000, 6_000_000
_COLORS = 128
_KINDS = {".png": "image/png", ".svg": "image/svg+xml"}
_PANEL, _GAP, _LEFT, _TOP, _BOTTOM = 3.0, 0.55, 0.3, 0.6, 0.25


class SlideView(NamedTuple):
    """A picture of a slide.

    Attributes:
        words: which slide and classifier it shows.
        link: the picture itself as a data link, or its file beside the page.
        is_inside: whether the link is the picture itself.
    """

    words: str
    link: str
    is_inside: bool


def write_slides(
    results: str, pairs: Sequence[tuple[str, str, str]], output: str, *, is_inside: bool
) -> list[tuple[str, str, list[SlideView]]]:
    """Draw the first slides of every classifier; a damaged one is left out with a warning.

    Pictures are inside the page as long as each and all of them fit, else files
    ``figures/slides/<model>/<dataset>/<preset>/<training>/<slide>`` of the report.

    Args:
        results: root of the results, with ``<model>/<dataset>/attention/<preset>/<training>``.
        pairs: dataset, its name in words, and model.
        output: folder of the report.
        is_inside: whether any are inside.

    Returns:
        Model, name of the dataset, and its pictures, where there are any.
    """
    left = MAX_INSIDE if is_inside else 0
    shown = []
    for dataset, name, model in pairs:
        views = []
        for place, title, suffix, data in _draw_all(results, model, dataset):
            link = f"data:{_KINDS[suffix]};base64,{base64.b64encode(data).decode()}"
            fits = len(link) <= min(left, MAX_BYTES)
            if fits:
                left -= len(link)
            else:
                path = files.join("figures/slides", *place) + suffix
                files.write_bytes(files.join(output, path), data)
                link = quote(path)
            views.append(SlideView(title, link, fits))
        if views:
            shown.append((model, name, views))
    return shown


def _draw_all(
    results: str, model: str, dataset: str
) -> Iterator[tuple[list[str], str, str, bytes]]:
    """Parts of the path, title, suffix and bytes of each picture."""
    root = files.join(results, model, dataset, FOLDER)
    if not files.exists(root):
        return
    for preset in files.list_folders(root):
        for trained in files.list_folders(files.join(root, preset)):
            folder = files.join(root, preset, trained)
            for name in sorted(files.list_files(folder, ".parquet"))[:MAX_SLIDES]:
                try:
                    found = read_attention(files.join(folder, name))
                except InputError as error:
                    logging.warning("%s The report has no such map.", error)
                    continue
                with figure_files.drawing_style():
                    suffix, data = figure_files.to_file(draw_attention(found))
                stem = name.removesuffix(".parquet")
                place = [encode_name(part) for part in (model, dataset, preset, trained, stem)]
                yield place, found.title, suffix, _shrink(data) if suffix == ".png" else data


def _shrink(png: bytes) -> bytes:
    """A PNG with at most ``_COLORS`` colours, of a third of the bytes."""
    stream = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLORS, dither=Dither.NONE)
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def draw_attention(found: AttentionMap) -> Figure:
    """Draw the patches of a slide: attention relative to an even one, and scores of classes.

    Of two classes the second is drawn, as the first is its mirror.
    """
    classes = found.classes
    shown = classes[1:] if len(classes) == 2 else classes[:MAX_CLASSES]
    table = found.table
    places = np.stack([table.column(name).to_numpy() for name in (X, Y)], axis=1)
    attention = table.column(ATTENTION).to_numpy() * len(places)
    panels = [("attention, 1 = even", attention, (0.0, max(2.0, float(attention.max()))))]
    for name in shown:
        score = table.column(f"{SCORE}{name}").to_numpy()
        limit = max(1.0, float(np.abs(score).max()))
        words = figure_layout.shorten(name, length=28)
        panels.append((f"score of {words}", score, (-limit, limit)))
    width = _LEFT + len(panels) * (_PANEL + _GAP)
    height = _TOP + _PANEL + _BOTTOM
    figure = Figure(figsize=(width, height))
    for number, (words, values, limits) in enumerate(panels):
        x = _LEFT + number * (_PANEL + _GAP)
        axes = figure.add_axes((x / width, _BOTTOM / height, _PANEL / width, _PANEL / height))
        _draw_patches(figure, axes, places, values, limits, number == 0)
        axes.set_title(words, fontsize=8, loc="left")
    title = figure_layout.shorten(found.title, length=int(width / 0.075))
    figure.text(_LEFT / width, 1 - 0.25 / height, title, fontweight="bold", fontsize=9)
    return figure


def _draw_patches(
    figure: Figure,
    axes: Axes,
    places: np.ndarray,
    values: np.ndarray,
    limits: tuple[float, float],
    is_attention: bool,
) -> None:
    extent = float(np.ptp(places, axis=0).max()) or 1.0
    side = min(find_spacing(places), extent)
    # The area of a square in points: a patch is as wide as patches are apart.
    points = 72 * _PANEL * side / (extent + side)
    drawn = axes.scatter(
        places[:, 0],
        places[:, 1],
        c=values,
        s=max(points, 1.5) ** 2,
        marker="s",
        linewidths=0,
        cmap="viridis" if is_attention else "RdBu_r",
        vmin=limits[0],
        vmax=limits[1],
        rasterized=True,
    )
    center = (places.min(axis=0) + places.max(axis=0)) / 2
    half = (extent + side) / 2
    axes.set_xlim(center[0] - half, center[0] + half)
    axes.set_ylim(center[1] + half, center[1] - half)  # rows of an image go down
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)


def find_spacing(places: np.ndarray) -> float:
    """How far apart patches are: the least distance between different x, or different y."""
    steps = [np.diff(np.unique(places[:, axis])) for axis in range(2)]
    known = [float(step.min()) for step in steps if step.size]
    return min(known, default=math.inf)
