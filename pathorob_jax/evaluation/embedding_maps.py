"""Two-dimensional maps of embeddings for inspection: principal components and t-SNE.

A map is a table of coordinates with the labels of each patch. The report draws it coloured by class
and by centre, side by side. t-SNE preserves neighbourhoods and little else: the distances between
its islands and their sizes have no meaning, and no number should be read from a map.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from pathorob_jax.core import checks, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.progress import Progress
from pathorob_jax.core.typing import ArrayLike, Float, Int
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest
from pathorob_jax.embeddings.store import Store
from pathorob_jax.kernels.pca import principal_components
from pathorob_jax.metrics.clustering_score import find_combinations
from pathorob_jax.results.map_files import N_NEAREST, WHOLE, write_map

# Standard deviation with which scikit-learn initialises t-SNE from principal components.
START_SPREAD = 1e-4
# Rows whose cosines with all others are in memory at once.
NEAREST_ROWS = 1000


@dataclass(frozen=True)
class MapSettings:
    """Choices of the maps.

    Attributes:
        max_rows: largest number of patches of a map, equally many of each class in each centre if
            available; t-SNE takes about one second per hundred patches.
        perplexity: perplexity of t-SNE, roughly its number of neighbours; lowered for few rows.
        n_components: number of principal components that t-SNE uses.
        seed: seed of the choice of patches and of t-SNE.
        combinations: whether to make a map of each combination of two classes and two centres too.
    """

    max_rows: int = 2000
    perplexity: float = 30.0
    n_components: int = 50
    seed: int = 0
    combinations: bool = False

    def check(self) -> None:
        """Reject numbers out of range.

        Raises:
            UsageError: a number is too small.
        """
        checks.check_at_least(3, max_rows=self.max_rows)
        checks.check_at_least(1, perplexity=self.perplexity, n_components=self.n_components)
        checks.check_at_least(0, seed=self.seed)


def make_maps(
    store: Store,
    *,
    model: str,
    dataset: str,
    view: Manifest,
    root: str,
    settings: MapSettings | None = None,
    relabelled: Collection[str] = (),
) -> list[str]:
    """Write the map of a dataset and, if set, of its combinations.

    Args:
        store: embeddings.
        model: name of the model's folder.
        dataset: name of the dataset's folder.
        view: rows and labels.
        root: folder of all results.
        settings: choices of the user.
        relabelled: columns with another meaning in ``view`` (a scanner in place of the centre).

    Returns:
        Paths ``<root>/<model>/<dataset>/maps/<name>.parquet``: the columns of ``COORDINATES`` with
        slide, patch, class and centre; the title is in the file's metadata.

    Raises:
        InputError: there are fewer than three rows, or embeddings are all zero or not finite.
    """
    settings = settings or MapSettings()
    settings.check()
    scopes = [(WHOLE, dataset, np.arange(len(view)))]
    if settings.combinations:
        combinations = find_combinations(view.column(CLASS), view.column(CENTER))
        scopes += [(f"combination_{i:04d}", c.name, c.rows) for i, c in enumerate(combinations)]
    written = []
    with Progress("maps", total=len(scopes), unit="map") as progress:
        for name, title, rows in scopes:
            chosen = view.take(choose_rows(view, rows, settings))
            x = store.read_patches(chosen, relabelled=relabelled)
            path = files.join(root, model, dataset, "maps", f"{name}.parquet")
            labels = np.stack([chosen.factorize(name).ids for name in (CLASS, CENTER, SLIDE)])
            write_map(path, title, chosen, map_embeddings(x, settings), find_nearest(x, labels))
            written.append(path)
            progress.update(1)
    return written


def choose_rows(view: Manifest, rows: np.ndarray, settings: MapSettings) -> np.ndarray:
    """Choose at most ``max_rows`` rows, ascending, as evenly as possible over classes and centres.

    Cells with fewer rows than their share contribute all of them; the others share the remainder.
    """
    if len(rows) <= settings.max_rows:
        return np.sort(rows)
    labels = np.stack([view.factorize(name).ids[rows] for name in (CLASS, CENTER)])
    cell = np.unique(labels, axis=1, return_inverse=True)[1].reshape(-1)
    order = np.random.default_rng(settings.seed).permutation(len(rows))
    order = order[np.argsort(cell[order], kind="stable")]
    first = np.searchsorted(cell[order], cell[order])
    turn = np.arange(len(order)) - first  # the first of each cell, then the second of each ...
    taken = order[np.argsort(turn, kind="stable")[: settings.max_rows]]
    return np.sort(rows[taken])


def find_nearest(
    x: Float[ArrayLike, "N D"], labels: Int[np.ndarray, "3 N"]
) -> Int[np.ndarray, "N K"]:
    """Nearest rows by cosine of the same class at other centres, and of other classes at its own.

    Args:
        x: embeddings.
        labels: ids of class, centre and slide; rows of a row's own slide are left out.

    Returns:
        int32[N, 2 * N_NEAREST] in the order of ``map_files.NEAREST``; -1 where there are no more.
    """
    rows = np.asarray(x, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = np.full((len(rows), 2 * N_NEAREST), -1, np.int32)
    kinds, centers, slides = labels
    for start in range(0, len(rows), NEAREST_ROWS):
        part = slice(start, start + NEAREST_ROWS)
        near = rows[part] @ rows.T
        same_class = kinds[part, None] == kinds
        same_center = centers[part, None] == centers
        apart = slides[part, None] != slides
        masks = (apart & same_class & ~same_center, apart & ~same_class & same_center)
        for number, mask in enumerate(masks):
            order = np.argsort(np.where(mask, -near, np.inf), axis=1, kind="stable")[:, :N_NEAREST]
            held = np.where(np.take_along_axis(mask, order, axis=1), order, -1)
            found[part, number * N_NEAREST : number * N_NEAREST + held.shape[1]] = held
    return found


def map_embeddings(x: Float[ArrayLike, "N D"], settings: MapSettings) -> Float[np.ndarray, "N 4"]:
    """Coordinates of rows scaled to unit length, in the order of ``COORDINATES``.

    Principal components are exact and computed on the device. t-SNE is scikit-learn's, on the first
    ``n_components`` components, initialised with the first two.

    Raises:
        InputError: there are fewer than three rows.
    """
    from sklearn.manifold import TSNE  # a second, of which no other metric has need

    rows = np.asarray(x, np.float64)
    n, dim = rows.shape
    if n < 3:
        raise InputError(f"embeddings: expected three rows or more for a map, found {n}.")
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    components = principal_components(rows, min(settings.n_components, n, dim)).coordinates
    plane = np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))
    spread = plane[:, 0].std()
    tsne = TSNE(
        init=plane / (spread if spread > 0 else 1) * START_SPREAD,
        perplexity=min(settings.perplexity, (n - 1) / 3),
        random_state=settings.seed,
    )
    return np.concatenate([plane, tsne.fit_transform(components)], axis=1)
