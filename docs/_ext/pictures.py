"""The pictures of the pages on numbers, one function each.

A class is a colour and a centre is a shape, everywhere: the two never share a code.
"""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

INK = "#123456"  # see drawn.py
BLUE, ORANGE, GREY = "#2a7ab0", "#d97706", "#8a8f98"
CLASSES = {"tumour": ORANGE, "normal": BLUE}
CENTERS = {"hospital A": "o", "hospital B": "s"}
STYLE = {
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
}


def _panels(n, height=2.7, width=6.6, **options):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, n, **options))


def _bare(axes):
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _patches(axes, xy, classes, centers, size=60):
    for colour in CLASSES.values():
        for marker in CENTERS.values():
            here = (np.array(classes) == colour) & (np.array(centers) == marker)
            axes.scatter(*xy[here].T, c=colour, marker=marker, s=size, edgecolors="none")


def _legend(axes, **where):
    line = mpl.lines.Line2D
    handles = [line([], [], ls="", marker="D", color=c, label=n) for n, c in CLASSES.items()]
    handles += [line([], [], ls="", marker=m, color=GREY, label=n) for n, m in CENTERS.items()]
    axes.legend(handles=handles, fontsize=9, **where)


def robustness_index():
    """One patch, its neighbours within k, and their kinds."""
    figure, [axes] = _panels(1, height=3.1, width=5.6)
    kinds = ["SS", "SO", "SO", "SO", "OS", "OO"]
    angles = np.deg2rad([100, 40, 165, 330, 215, 275])
    radii = np.array([0.55, 0.7, 0.8, 0.6, 0.85, 0.75])
    xy = np.c_[radii * np.cos(angles), radii * np.sin(angles)]
    outside = np.array([[1.35, 0.5], [1.3, -0.55], [-1.3, 0.1], [-1.25, -0.65]])
    classes = [ORANGE if kind[0] == "S" else BLUE for kind in kinds]
    centers = ["o" if kind[1] == "S" else "s" for kind in kinds]
    axes.add_patch(mpl.patches.Circle((0, 0), 1.02, fill=False, ls="--", ec=INK))
    axes.plot(0, 0, marker="o", ms=15, mfc=ORANGE, mec=INK, mew=2)
    for (x, y), kind in zip(xy, kinds, strict=True):
        axes.plot([0, x], [0, y], lw=0.8, color=INK, zorder=0)
        axes.annotate(kind, (x, y), (9, 5), textcoords="offset points", fontsize=11)
    _patches(axes, xy, classes, centers, size=90)
    _patches(axes, outside, [BLUE, ORANGE, BLUE, ORANGE], ["s", "o", "o", "s"], size=50)
    axes.set(xlim=(-1.7, 3.2), ylim=(-1.15, 1.15), aspect="equal")
    axes.text(1.75, -0.55, "SO: 3,  OS: 1\nindex = 3 / (3 + 1) = 0.75", fontsize=11)
    _legend(axes, loc="upper right")
    _bare(axes)
    return figure


def margins():
    """Distances from a patch to its nearest SO and OS patches."""
    figure, [axes] = _panels(1, height=2.1, width=6.2)
    so, os_ = np.array([0.22, 0.27, 0.31, 0.36, 0.42]), np.array([0.48, 0.55, 0.6, 0.66, 0.72])
    axes.plot(so, np.full(5, 1), ls="", marker="s", ms=9, color=ORANGE)
    axes.plot(os_, np.full(5, 0), ls="", marker="o", ms=9, color=BLUE)
    axes.plot([0, 0], [0.5, 0.5], marker="o", ms=14, mfc=ORANGE, mec=INK, mew=2)
    for values, y, text in ((so, 1, "a"), (os_, 0, "b")):
        axes.annotate(
            "", (values.mean(), y + 0.28), (0, y + 0.28), arrowprops={"arrowstyle": "->", "ec": INK}
        )
        axes.text(values.mean() / 2, y + 0.34, f"{text} = {values.mean():.2f}", ha="center")
    a, b = so.mean(), os_.mean()
    axes.text(0.78, 0.5, f"CRoMa = (b − a) / (b + a)\n= {(b - a) / (b + a):+.2f}", va="center")
    axes.set(xlim=(-0.05, 1.15), ylim=(-0.4, 1.75), xlabel="cosine distance from the patch")
    axes.set_yticks([1, 0], ["same class, other hospital", "other class, same hospital"])
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)
    return figure


def apd():
    """Accuracy along the association of class and centre."""
    figure, [axes] = _panels(1, height=2.8, width=5.6)
    v = np.arange(8) / 7
    inside = 0.93 - 0.03 * v - 0.16 * v**4
    outside = 0.88 - 0.02 * v - 0.05 * v**4
    axes.fill_between(v, inside, inside[0], color=BLUE, alpha=0.15, lw=0)
    axes.plot(v, inside, "-o", color=BLUE, label="other slides of the same hospitals")
    axes.plot(v, outside, "--s", color=ORANGE, label="other hospitals")
    axes.axhline(inside[0], color=INK, lw=0.8, ls=":")
    axes.set(
        xlabel="association of class and hospital in training (Cramér's V)",
        ylabel="balanced accuracy",
        ylim=(0.7, 0.97),
    )
    axes.annotate("the drop", (0.9, 0.88), color=INK)
    axes.legend(loc="lower left", fontsize=9)
    return figure


def _groups(seed, along_class, along_center, n=18):
    rng = np.random.default_rng(seed)
    cells = [(c, m) for c in (0, 1) for m in (0, 1)]
    parts = [
        rng.normal(0, 0.32, (n, 2)) + [along_center * (2 * m - 1), along_class * (2 * c - 1)]
        for c, m in cells
    ]
    classes = [list(CLASSES.values())[c] for c, _ in cells for _ in range(n)]
    centers = [list(CENTERS.values())[m] for _, m in cells for _ in range(n)]
    return np.concatenate(parts), classes, centers


def clustering_score():
    """The same patches clustered by class, and by centre."""
    figure, panels = _panels(2, height=2.6)
    for axes, (title, up, across) in zip(
        panels,
        (("clusters follow the class: score +1", 1.2, 0.3),
         ("clusters follow the hospital: score −1", 0.3, 1.2)),
        strict=True,
    ):  # fmt: skip
        _patches(axes, *_groups(1, up, across), size=28)
        for sign in (-1, 1):
            middle = (0, sign * up) if up > across else (sign * across, 0)
            size = (2.2, 1.7) if up > across else (1.7, 2.2)
            axes.add_patch(mpl.patches.Ellipse(middle, *size, fill=False, ec=INK, ls="--"))
        axes.set(xlim=(-2.4, 2.4), ylim=(-2.2, 2.2))
        axes.set_title(title, fontsize=10, color=INK)
        _bare(axes)
    return figure


def probes():
    """One set of patches, and the two lines that tell class and centre."""
    figure, panels = _panels(2, height=2.6)
    xy, classes, centers = _groups(2, 0.7, 0.9)
    for axes, title in zip(
        panels, ("a line tells the class", "another tells the hospital"), strict=True
    ):
        _patches(axes, xy, classes, centers, size=28)
        (axes.axhline if "class" in title else axes.axvline)(0, color=INK, lw=1.5, ls="--")
        axes.set_title(title, fontsize=10, color=INK)
        _bare(axes)
    return figure


def retrieval():
    """A query and what a search brings back."""
    figure, [axes] = _panels(1, height=1.5, width=6.2)
    found = [(ORANGE, "s"), (BLUE, "o"), (ORANGE, "o"), (ORANGE, "s"), (BLUE, "o")]
    axes.plot(0, 0, marker="o", ms=24, mfc=ORANGE, mec=INK, mew=2)
    axes.text(0, 0.75, "query", ha="center")
    for rank, (colour, marker) in enumerate(found, 1):
        x = 1.2 + rank
        axes.plot(x, 0, marker=marker, ms=20, color=colour)
        axes.text(x, 0.75, f"{rank}", ha="center")
        axes.text(x, -0.95, "right" if colour == ORANGE else "wrong", ha="center")
    axes.annotate("", (1.9, 0), (0.5, 0), arrowprops={"arrowstyle": "->", "ec": INK})
    axes.set(xlim=(-0.7, 7), ylim=(-1.2, 1.2))
    _bare(axes)
    return figure


def feature_space():
    """Variance of principal components, split."""
    figure, [axes] = _panels(1, height=2.5, width=5.6)
    total = np.array([30, 18, 11, 7, 5, 4, 3.2, 2.6])
    center = total * np.array([0.7, 0.15, 0.4, 0.1, 0.08, 0.05, 0.04, 0.04])
    bio = total * np.array([0.1, 0.5, 0.2, 0.25, 0.1, 0.1, 0.05, 0.05])
    x = np.arange(1, 9)
    axes.bar(x, center, color=GREY, hatch="///", label="between hospitals", edgecolor=INK, lw=0.4)
    axes.bar(x, bio, bottom=center, color=BLUE, label="between classes", edgecolor=INK, lw=0.4)
    axes.bar(x, total - bio - center, bottom=bio + center, color="none", edgecolor=INK, lw=0.8,
             label="within both")  # fmt: skip
    axes.set(xlabel="principal component", ylabel="share of the variance, %")
    axes.legend(fontsize=9)
    return figure


def slide_prediction():
    """Bags of patches, and a classifier of bags."""
    figure, [axes] = _panels(1, height=1.9, width=6.2)
    rng = np.random.default_rng(3)
    for i, (colour, marker) in enumerate([(ORANGE, "o"), (BLUE, "s"), (ORANGE, "s")]):
        xy = rng.uniform(-0.42, 0.42, (9, 2)) + [1.4 * i, 0]
        axes.scatter(*xy.T, c=colour, marker=marker, s=30)
        box = mpl.patches.FancyBboxPatch((1.4 * i - 0.5, -0.5), 1, 1, boxstyle="round,pad=.06",
                                         fill=False, ec=INK)  # fmt: skip
        axes.add_patch(box)
        axes.text(1.4 * i, 0.72, f"slide {i + 1}", ha="center")
    axes.annotate("", (4.5, 0), (3.55, 0), arrowprops={"arrowstyle": "->", "ec": INK})
    axes.text(4.6, 0, "attention or mean\n→ one answer for a slide", va="center")
    axes.set(xlim=(-0.8, 7.2), ylim=(-0.8, 1), aspect="equal")
    _bare(axes)
    return figure


def intervals():
    """The index without each slide, and the interval."""
    figure, [axes] = _panels(1, height=2.0, width=5.6)
    rng = np.random.default_rng(4)
    left_out = 0.62 + rng.normal(0, 0.012, 14)
    axes.plot(left_out, np.full(14, 1), ls="", marker="|", ms=16, color=INK)
    error = np.sqrt(13 / 14 * np.square(left_out - left_out.mean()).sum())
    axes.errorbar(0.62, 0, xerr=2.16 * error, fmt="o", color=BLUE, capsize=5, lw=2)
    axes.set_yticks(
        [1, 0], ["the index without\neach of 14 slides", "the index and its\n95 % interval"]
    )
    axes.set(ylim=(-0.6, 1.6), xlim=(0.48, 0.76), xlabel="robustness index")
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)
    return figure


def robustification():
    """Patches before and after the hospitals' means were aligned."""
    figure, panels = _panels(2, height=2.6)
    for axes, (title, across) in zip(panels, (("before", 1.2), ("after", 0.05)), strict=True):
        _patches(axes, *_groups(5, 0.7, across), size=28)
        axes.set(xlim=(-2.4, 2.4), ylim=(-2.0, 2.0))
        axes.set_title(title, fontsize=10, color=INK)
        _bare(axes)
    _legend(panels[1], loc="upper right")
    return figure
