"""A pass over the tiles of a dataset: forward passes of encoders, and the chunks they fill.

Each tile is read once for all encoders of a pass. The chunks that are missing are shared with
whoever else embeds into the same stores: before a chunk is read this process takes it
(``core.leases``), a little ahead of the devices. Chunks of processes that died are taken over.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import devices
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.progress import Progress
from pathorob_jax.data import tile_batches
from pathorob_jax.data.tile_batches import NO_ROW, Batch, OnBadImage
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.chunk_plan import GrowingPlan, Sink
from pathorob_jax.embeddings.pipeline import run_ahead
from pathorob_jax.embeddings.size_sorting import Shape, SizeSorter, Step
from pathorob_jax.embeddings.store_writer import StoreWriter
from pathorob_jax.embeddings.tile_transform import Normalize
from pathorob_jax.embeddings.timing import Clock, Summary
from pathorob_jax.models import registry
from pathorob_jax.models.registry import Encoder

# How often a process without work looks whether the chunks of others are there.
LOOK_EVERY_S = 1.0


class Forward:
    """Encoders that share a forward pass: their parameters and the jitted step of all."""

    def __init__(self, encoders: Sequence[Encoder], mesh: Mesh):
        self.encoders = tuple(encoders)
        forward = encoders[0].forward

        def step(params: Any, images: jax.Array) -> tuple[jax.Array, ...]:
            tokens = forward(params, images)
            return tuple(encoder.pooled(tokens) for encoder in self.encoders)

        whole, split = devices.replicated_sharding(mesh), devices.row_sharding(mesh)
        on_mesh = set(mesh.devices.flat)
        self.step = jax.jit(step, out_shardings=split)
        self.params = jax.tree.map(
            lambda x: x if x.sharding.device_set == on_mesh else jax.device_put(x, whole),
            encoders[0].params,
        )


def by_forward(encoders: Sequence[Encoder], mesh: Mesh) -> list[Forward]:
    """The forward passes of encoders; those of one network share one."""
    groups: dict[tuple[int, int], list[Encoder]] = {}
    for encoder in encoders:
        groups.setdefault((id(encoder.forward), id(encoder.params)), []).append(encoder)
    return [Forward(group, mesh) for group in groups.values()]


def list_passes(
    forwards: Sequence[Forward], writer_of: dict[str, StoreWriter], mesh: Mesh
) -> list[list[Forward]]:
    """Unfinished forward passes, grouped by block and chunk size: a group reads the same blocks."""
    groups: dict[tuple[int, int], list[Forward]] = {}
    for forward in forwards:
        left = [e for e in forward.encoders if _is_unfinished(writer_of[e.name])]
        keys = [block_and_chunk(writer_of[e.name]) for e in left]
        for key in dict.fromkeys(keys):
            same = [e for e, k in zip(left, keys, strict=True) if k == key]
            whole = len(same) == len(forward.encoders)
            groups.setdefault(key, []).append(forward if whole else Forward(same, mesh))
    return list(groups.values())


def _is_unfinished(writer: StoreWriter) -> bool:
    if writer.info["complete"]:
        logging.info("%s: complete already, %d patches", writer.path, writer.info["n_rows"])
    return not writer.info["complete"]


def block_and_chunk(writer: StoreWriter) -> tuple[int, int]:
    """Rows of a block and of a chunk of a store."""
    return int(writer.info["settings"]["batch_size"]), writer.chunk_rows


class _Embedded(NamedTuple):
    """A step, and its embeddings by each encoder that wants them, for the encoder's sink.

    Attributes:
        step: the tiles.
        embeddings: sinks and arrays.
        outcomes: uint8[B] what ``stain`` made of the tiles; None: there is none.
    """

    step: Step
    embeddings: list[tuple[Sink, Any]]
    outcomes: Any

    def is_done(self) -> bool:
        """Whether the devices have computed all of it."""
        return all(array.is_ready() for _, array in self.embeddings)


class _Chunks:
    """The missing chunks of the stores of a pass, which other processes may embed, too."""

    def __init__(self, sink_of: dict[str, Sink], writers: Sequence[StoreWriter]):
        self._sink_of, self._writers = sink_of, writers
        self._free: dict[str, dict[int, int]] = {}
        self._said: set[str] = set()
        self.missing: list[int] = []
        """Chunks that were on no disk at the last look."""

    def look(self) -> bool:
        """Look which chunks are missing; whether one may be taken."""
        missing: set[int] = set()
        holders: set[str] = set()
        for writer in self._writers:
            chunks = writer.find_missing()
            held = writer.find_leases(chunks)
            missing |= set(chunks)
            # The number of the lease under which a chunk is taken.
            self._free[writer.path] = {
                chunk: held[chunk].number + 1 if chunk in held else 0
                for chunk in chunks
                if chunk not in held or not held[chunk].is_living
            }
            holders |= {lease.holder for lease in held.values() if lease.is_living}
        for holder in sorted(holders - self._said):
            logging.info("%s embeds a part of the tiles.", holder or "another process")
        self._said |= holders
        self.missing = sorted(missing)
        return any(self._free.values())

    def take(self) -> Iterator[int]:
        """Take one chunk after the other, as the caller asks for the next."""
        for chunk in self.missing:
            is_mine = False
            for writer in self._writers:
                number = self._free[writer.path].get(chunk)
                if number is None:
                    continue
                if not writer.take(chunk, number=number):
                    # Whoever was faster takes it in all its stores: no tile is read twice.
                    break
                self._sink_of[writer.path].want(chunk)
                is_mine = True
            if is_mine:
                yield chunk


class Pass:
    """One pass over the tiles, for encoders whose stores have the same blocks and chunks."""

    def __init__(
        self,
        tileset: Tileset,
        group: Sequence[Forward],
        writer_of: dict[str, StoreWriter],
        *,
        shape: Shape,
        workers: int,
        on_bad_image: OnBadImage,
        normalize: Normalize | None,
        mesh: Mesh,
    ):
        self._tileset, self._mesh, self._shape = tileset, mesh, shape
        self._workers, self._on_bad_image, self._normalize = workers, on_bad_image, normalize
        self._encoders = [encoder for forward in group for encoder in forward.encoders]
        writers = [writer_of[encoder.name] for encoder in self._encoders]
        self._batch_size, self._chunk_rows = block_and_chunk(writers[0])
        self._sink_of = {writer.path: Sink(writer) for writer in writers}
        self._forwards = [
            (forward, [self._sink_of[writer_of[e.name].path] for e in forward.encoders])
            for forward in group
        ]
        self._chunks = _Chunks(self._sink_of, writers)
        self._clock = Clock()
        self._n_tiles, self._n_bad, self._read_s = 0, 0, 0.0
        self._newest: _Embedded | None = None

    def run(self) -> Summary:
        """Embed what is missing, until no process has anything left; write each full chunk."""
        name = "embed " + ",".join(encoder.name for encoder in self._encoders)
        may_take = self._chunks.look()
        total = sum(self._n_rows(chunk) for chunk in self._chunks.missing)
        with Progress(name, total=total, unit="tile") as progress:
            while self._chunks.missing:
                if may_take:
                    self._embed(progress)
                else:
                    time.sleep(LOOK_EVERY_S)
                may_take = self._chunks.look()
                left = sum(self._n_rows(chunk) for chunk in self._chunks.missing)
                progress.others_did(total - left)
        return Summary(
            tiles=self._n_tiles - self._n_bad,
            seconds=self._clock.elapsed_s,
            start_s=self._clock.start_s,
            wait_s=self._clock.wait_s,
            read_s=self._read_s,
            n_bad=self._n_bad,
        )

    def _n_rows(self, chunk: int) -> int:
        return min(self._chunk_rows, len(self._tileset) - chunk * self._chunk_rows)

    def _embed(self, progress: Progress) -> None:
        """Embed the chunks that this process can take."""
        sorter = SizeSorter(
            shape=self._shape,
            chunk_rows=self._chunk_rows,
            batch_size=self._batch_size,
            n_devices=self._mesh.size,
            on_bad_image=self._on_bad_image,
            refuse=functools.partial(_refuse, self._encoders),
        )
        with contextlib.closing(self._read()) as batches:
            for done in run_ahead(sorter.sort(batches), self._dispatch):
                for sink, embeddings in done.embeddings:
                    outcomes = None if done.outcomes is None else np.asarray(done.outcomes)
                    sink.add(done.step, np.asarray(embeddings), outcomes)
                n = int((done.step.rows != NO_ROW).sum())
                self._n_tiles += n
                self._n_bad += len(done.step.bad)
                progress.update(n)
            for sink in self._sink_of.values():
                sink.finish()

    def _read(self) -> Generator[Batch]:
        """The tiles of the chunks that this process takes, which it does as it reads."""
        ahead = tile_batches.steps_ahead(self._workers)
        chunks = self._chunks.take()
        with tempfile.TemporaryDirectory(prefix="pathorob-") as folder:
            plan = GrowingPlan(
                folder,
                n_rows=len(self._tileset),
                chunk_rows=self._chunk_rows,
                batch_size=self._batch_size,
                n_devices=self._mesh.size,
            )
            tiles = tile_batches.read_batches(
                self._tileset,
                plan,
                workers=self._workers,
                on_bad_image=self._on_bad_image,
                shape=self._shape,
                mixed=True,
            )
            try:
                for n_read in range(len(plan)):
                    with self._clock.waiting(self._is_idle):
                        plan.grow(n_read + ahead, chunks)
                        batch = next(tiles)
                    if (batch.rows == NO_ROW).all():
                        return
                    self._read_s += batch.read_s
                    yield batch
            finally:
                plan.end()
                close = getattr(tiles, "close", None)
                if close is not None:
                    close()

    def _is_idle(self) -> bool:
        return self._newest is None or self._newest.is_done()

    def _dispatch(self, step: Step) -> _Embedded:
        split = devices.row_sharding(self._mesh)
        outcomes = None
        if self._normalize is None:
            images = jax.device_put(step.images, split)
        else:
            images, outcomes = self._normalize(step.images, step.rows, self._mesh)
        embedded: list[tuple[Sink, Any]] = []
        for forward, sinks in self._forwards:
            if any(sink.wants(step.rows).any() for sink in sinks):
                embedded += zip(sinks, forward.step(forward.params, images), strict=True)
        for _, embeddings in embedded:
            embeddings.copy_to_host_async()
        self._newest = _Embedded(step, embedded, outcomes)
        self._clock.start()
        return self._newest


def _refuse(encoders: Sequence[Encoder], shape: tuple[int, int, int]) -> str:
    """Why an encoder cannot take tiles of a size; "" if all can."""
    for encoder in encoders:
        try:
            registry.embedding_dim(encoder, *shape[:2])
        except (InputError, TypeError, ValueError) as error:
            return f"{encoder.name}: {str(error).strip().splitlines()[0].rstrip('.')}"
    return ""
