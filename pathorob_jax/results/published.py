"""Published numbers beside one's own: only where pooling, preprocessing and k agree.

``published.yaml`` holds the numbers, board by board, each with its source, date, k, protocol and
the use of encoders (pooling, preprocessing). ``find_published`` returns, for the records of one
model, the published number that repeats them, or the reason why none does.
"""

import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.core.plain import as_plain, find_part, from_plain
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.models import facts, registry
from pathorob_jax.models.preprocess import Preprocess
from pathorob_jax.models.spec_files import read_mapping
from pathorob_jax.results.apd import ApdResult
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult

FILE = str(pathlib.Path(__file__).parent / "published.yaml")
MEAN, HALF = "mean", "half"
MEAN_OF = ("camelyon", "tcga", "tolkach_esca")
FIELDS: Mapping[str, tuple[type[Any], str]] = {
    "robustness_index": (RobustnessIndexResult, "robustness index"),
    "apd_id": (ApdResult, "performance drop, in domain"),
    "apd_ood": (ApdResult, "performance drop, out of domain"),
    "nipd_id": (ApdResult, "nIPD, in domain"),
    "clustering_score": (ClusteringResult, "clustering score"),
}
"""Numbers that boards publish: the record that holds each, and its title."""
ROBUSTIFIED = "+"


@dataclass(frozen=True)
class Board:
    """Numbers of one source.

    Attributes:
        title: short name.
        source: where the numbers stand, in words.
        date: of the copy that they were read from, ``YYYY[-MM[-DD]]``.
        protocol: rows, splits and settings, in words.
        use: ``pathorob``: pooling and preprocessing of ``ModelSpec.pathorob``; ``authors``: those
            of the encoder's authors; ``stated``: ``pooling``, with the authors' preprocessing;
            ``unknown``: the source does not say.
        columns: of each value of a row its number and dataset, or ``half``: half the width of the
            interval of the value before it.
        models: rows, by the model's name at the source; None: not published.
        design: of neighbours, by dataset.
        k: number of neighbours, by dataset.
        pooling: where ``use`` is ``stated``.
        precision: of the encoder; "": not stated.
        why_not: why none of the numbers is comparable; "": some are.
    """

    title: str
    source: str
    date: str
    protocol: str
    use: Literal["pathorob", "authors", "stated", "unknown"]
    columns: tuple[str, ...]
    models: dict[str, list[float | None]]
    design: dict[str, str] = field(default_factory=dict)
    k: dict[str, int] = field(default_factory=dict)
    pooling: str = ""
    precision: str = ""
    why_not: str = ""


class Published(NamedTuple):
    """A published number.

    Attributes:
        model: name at the source.
        field: name of the number, one of ``FIELDS``.
        dataset: name of the dataset; ``mean``: over the three of PathoROB.
        value: the number; drops are shares.
        ci95: its interval; None: not published.
        board: where it stands.
    """

    model: str
    field: str
    dataset: str
    value: float
    ci95: list[float] | None
    board: Board


class Beside(NamedTuple):
    """The published number that repeats records.

    Attributes:
        number: None if there is none.
        why: why there is none; "" otherwise.
        note: a reserve about the number that is there.
    """

    number: Published | None
    why: str = ""
    note: str = ""


def read_boards(path: str) -> dict[str, Board]:
    """Boards by name.

    Raises:
        InputError: the file is not of this form; the message names file, board and row.
        FileNotFoundError: there is no such file.
    """
    boards: dict[str, Board] = from_plain(dict[str, Board], read_mapping(path), where=path)
    for name, board in boards.items():
        for before, column in itertools.pairwise((HALF, *board.columns)):
            if column == before == HALF:
                raise InputError(
                    f"{path}: {name}.columns: expected '<number> <dataset>' before each {HALF!r}, "
                    f"found {list(board.columns)}."
                )
            if column != HALF and column.partition(" ")[0] not in FIELDS:
                raise InputError(
                    f"{path}: {name}.columns: expected {HALF!r} or '<number> <dataset>' with a "
                    f"number of {', '.join(FIELDS)}, found {column!r}."
                )
        for model, row in board.models.items():
            if len(row) != len(board.columns):
                raise InputError(
                    f"{path}: {name}.models.{model}: expected {len(board.columns)} values, one "
                    f"for each column, found {len(row)}."
                )
            for place, column in enumerate(board.columns):
                if column == HALF and row[place] is not None and row[place - 1] is None:
                    raise InputError(
                        f"{path}: {name}.models.{model}: expected no half width of "
                        f"{board.columns[place - 1]!r}, which is null; found {row[place]}."
                    )
    return boards


@functools.cache
def known_boards() -> dict[str, Board]:
    """The boards that the package holds."""
    return read_boards(FILE)


@functools.cache
def list_published() -> tuple[Published, ...]:
    """All published numbers, in the order of boards, models and columns."""
    return tuple(
        number
        for board in known_boards().values()
        for model, row in board.models.items()
        for number in _read_row(board, model, row)
    )


def _read_row(board: Board, model: str, row: Sequence[float | None]) -> list[Published]:
    numbers: list[Published] = []
    for column, value in zip(board.columns, row, strict=True):
        if value is None:
            continue
        if column == HALF:
            last = numbers.pop()
            numbers.append(last._replace(ci95=[last.value - value, last.value + value]))
        else:
            name, _, dataset = column.partition(" ")
            numbers.append(Published(model, name, dataset, value, None, board))
    return numbers


@functools.cache
def encoder_key(model: str) -> str:
    """One text for all names of an encoder in results and tables: its name in the registry."""
    known = facts.find_facts(model)
    names = (name for name, found in facts.known_facts().items() if found is known)
    return next(names, facts.plain_name(model))


def is_same(model: str, other: str) -> bool:
    """Whether two names in results or tables are of one encoder."""
    return encoder_key(model) == encoder_key(other)


def of_model(model: str) -> list[Published]:
    """All that is published of the encoder of a name in results or tables."""
    return [number for number in list_published() if is_same(model, number.model)]


def find_published(records: Sequence[Any], name: str) -> Beside:
    """The published number that repeats a number of one model.

    Args:
        records: the record of one dataset, or those over whose datasets the mean is taken.
        name: field of the records, one of ``FIELDS``.

    Returns:
        The first number, in the order of the boards, of the same encoder, pooling, preprocessing,
        rows and k; or the reason why there is none.
    """
    model = records[0].model
    if ROBUSTIFIED in model:
        return Beside(None, "robustified or stain-normalised; published are plain encoders")
    encoder = _encoder_of(records[0]).get("model", model)
    found = [n for n in of_model(str(encoder)) if n.field == name]
    if not found:
        return Beside(None, "nothing is published of this encoder")
    datasets = [record.dataset for record in records]
    if any(split_confounder(dataset)[1] for dataset in datasets):
        return Beside(None, "not scored by the medical centre")
    wanted = datasets[0] if len(records) == 1 else MEAN
    if wanted == MEAN and sorted(datasets) != list(MEAN_OF):
        return Beside(None, f"the published mean is over {', '.join(MEAN_OF)}")
    there = [number for number in found if number.dataset == wanted]
    if not there:
        known = ", ".join(dict.fromkeys(number.dataset for number in found))
        return Beside(None, f"published of {known} only")
    reasons = []
    for number in there:
        whys = [_why_not(number.board, record) for record in records]
        if not any(whys):
            return Beside(number, note=_note(number.board, str(encoder)))
        reasons.append(f"{number.board.title}: {next(filter(None, whys))}")
    return Beside(None, "; ".join(reasons))


def _encoder_of(record: Any) -> Mapping[str, Any]:
    """What a record's store says of its encoder; empty where it says nothing."""
    return find_part(record.provenance, "store", "identity", "encoder")


def _note(board: Board, encoder: str) -> str:
    """Reserves about a number beside one's own."""
    use = registry.MODELS[encoder].pathorob
    notes = []
    if board.use == "pathorob" and use is not None:
        if use.confidence == "inferred":
            notes.append("its pooling is inferred from the length of the embedding")
        if use.preprocess is None:
            notes.append("its preprocessing is taken to be the authors'")
    if board.precision:
        notes.append(f"its encoder computed in {board.precision}")
    return "; ".join(notes)


def _why_not(board: Board, record: Any) -> str:
    """Why a board's number does not repeat a record; "" if it does."""
    return board.why_not or _why_other_use(board, record) or _why_other_protocol(board, record)


def _why_other_use(board: Board, record: Any) -> str:
    mine = _encoder_of(record)
    if "pooling" not in mine:
        return "pooling and preprocessing of these embeddings are not recorded"
    spec = registry.MODELS.get(str(mine.get("model")))
    if spec is None:
        return "the encoder is not of the registry"
    if board.use == "unknown":
        return "its pooling and preprocessing are not stated"
    pooling: str | None = board.pooling
    preprocess: Preprocess | None = spec.preprocess
    if board.use == "pathorob":
        if spec.pathorob is None:
            return "how PathoROB used the encoder is not known"
        pooling, preprocess = spec.pathorob.pooling, spec.pathorob.preprocess or preprocess
    elif board.use == "authors":
        pooling = spec.default_pooling
    if mine["pooling"] != pooling:
        return f"pooled as {mine['pooling']}, published as {pooling}"
    return _why_other_images(mine.get("preprocess"), as_plain(preprocess))


def _why_other_images(mine: Any, theirs: Any) -> str:
    if mine == theirs:
        return ""
    if not isinstance(mine, Mapping) or not isinstance(theirs, Mapping):
        return "another preprocessing"
    names = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    return "; ".join(f"{n} {mine.get(n)}, published with {theirs.get(n)}" for n in names)


def _why_other_protocol(board: Board, record: Any) -> str:
    settings = find_part(record.provenance, "settings")
    if isinstance(record, RobustnessIndexResult):
        if settings.get("max_patches_per_combi"):
            return "with fewer patches"
        if record.k != board.k.get(record.dataset):
            return f"k = {record.k}, published at {board.k.get(record.dataset)}"
        design = board.design.get(record.dataset)
        return "" if record.design == design else f"design {record.design}, published {design}"
    protocol = PROTOCOLS.get(record.dataset)
    if protocol is None:
        return "not a dataset of PathoROB"
    if isinstance(record, ApdResult):
        drop = protocol.apd
        pairs: dict[str, tuple[Any, Any]] = {
            "repetitions": (record.repetitions, drop.repetitions),
            "seed": (record.seed, drop.seed),
            "patches of a slide": (record.rows_per_slide, drop.schedule.rows_per_slide),
            "splits": (len(record.cramers_v), len(drop.schedule.slides)),
        }
    else:
        cluster = protocol.clustering_score
        ends = (cluster.k_min, cluster.k_max)
        pairs = {
            "trials": (record.trials, cluster.trials),
            "distance": (record.distance, "cosine"),
            "grid of K": ((min(record.k_grid), max(record.k_grid)), ends),
        }
    return next(
        (
            f"{what} {mine}, published {theirs}"
            for what, (mine, theirs) in pairs.items()
            if mine != theirs
        ),
        "",
    )
