"""What a run would do: what is there, what is downloaded, disk and time. Nothing is written.

Sizes and licences of the benchmark are those of ``data.sources``; those of weights are the specs'.
Time is that of earlier results of this machine where there are any (``earlier``), else estimated
from short measurements (``measure``). Downloads, and metrics of many fits that were never computed
here, are named, but not in the estimate.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import huggingface_hub
import jax

from pathorob_jax.core.attempts import attempt
from pathorob_jax.core.cost import describe_duration
from pathorob_jax.data import fetch, synthetic_tiles
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.data.sources import SOURCES
from pathorob_jax.models import registry, weights
from pathorob_jax.models.spec import ModelSpec
from pathorob_jax.runs import earlier, measure
from pathorob_jax.runs.request import SYNTHETIC, RunRequest
from pathorob_jax.runs.status import DONE, Status, find_status
from pathorob_jax.runs.steps import (
    CONVERT,
    EVALUATE,
    EXTRACT,
    FETCH,
    REPORT,
    Converter,
    Key,
    list_steps,
)

# Of an image of the benchmark, for estimates before it is there.
BYTES_A_TILE = 21_000
# Seconds that the report takes: to begin, and for each result.
REPORT_S, RESULT_S = 3.0, 0.3
# Seconds to import everything.
START_S = 4.0
MB = 10**6


@dataclass(frozen=True)
class Download:
    """What would be downloaded, or must be there.

    Attributes:
        what: dataset or encoder.
        source: address.
        n_bytes: size; None: unknown.
        licence: its licence.
        note: terms that must be accepted, or what else to do; "": nothing.
    """

    what: str
    source: str
    n_bytes: int | None
    licence: str
    note: str = ""


@dataclass(frozen=True)
class Disk:
    """Room on one disk, in bytes.

    Attributes:
        path: a folder on it.
        needed: what the run will write there.
        free: what is free.
    """

    path: str
    needed: int
    free: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run would do.

    Attributes:
        status: what is there.
        downloads: what would come from servers.
        disks: room that is needed and free.
        seconds: estimated time by kind of step, of what is left; without downloads.
        unmeasured: metrics that are not in the estimate.
        device: what computes.
        earlier: what is taken from earlier results, in words.
    """

    status: Status
    downloads: Sequence[Download]
    disks: Sequence[Disk]
    seconds: Mapping[str, float]
    unmeasured: Sequence[str]
    device: str
    earlier: Sequence[str] = ()

    @property
    def total_s(self) -> float:
        """Estimated time in seconds."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        return "\n\n".join(
            ["the plan; nothing is written", str(self.status), *self._about(), self._time()]
        )

    def _about(self) -> list[str]:
        lines = ["to download: nothing"] if not self.downloads else ["to download:"]
        for one in self.downloads:
            size = "size unknown" if one.n_bytes is None else fetch.describe_bytes(one.n_bytes)
            lines.append(f"  {one.what}: {size} from {one.source}, licence {one.licence}")
            lines += [f"    {one.note}"] if one.note else []
        room = ["disk:"]
        for disk in self.disks:
            little = "  TOO LITTLE: make room first" if disk.needed > disk.free else ""
            needed, free = fetch.describe_bytes(disk.needed), fetch.describe_bytes(disk.free)
            room.append(f"  {disk.path}: about {needed} needed, {free} free{little}")
        return ["\n".join(lines), "\n".join(room)]

    def _time(self) -> str:
        parts = [f"{kind} {describe_duration(s)}" for kind, s in self.seconds.items() if s >= 0.5]
        lines = [
            f"time on {self.device}: about {describe_duration(self.total_s)} ({', '.join(parts)})"
        ]
        if not parts:
            lines = ["time: nothing is left to do"]
        if self.earlier:
            lines.append(f"  as earlier results of this machine took: {'; '.join(self.earlier)}")
        if self.downloads:
            lines.append("  downloads are not in it: they take what the network takes")
        if self.unmeasured:
            lines.append(f"  not measured, and not in it: {', '.join(self.unmeasured)}")
        return "\n".join(lines)


def make_plan(request: RunRequest, converter: Converter) -> Plan:
    """Look at what is there, and measure how long the rest takes; writes and asks nothing."""
    steps = list_steps(request, converter)
    status = find_status(request, steps)
    left = [key for key, step in status.steps.items() if step.state != DONE]
    planner = _Planner(request, converter, status, left)
    seconds = planner.estimate()
    downloads = planner.list_downloads()
    return Plan(
        status=status,
        downloads=downloads,
        disks=planner.list_disks(downloads),
        seconds=seconds,
        unmeasured=planner.unmeasured,
        device=f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        earlier=planner.earlier,
    )


class _Planner:
    """Sizes and times of the steps that are left."""

    def __init__(
        self, request: RunRequest, converter: Converter, status: Status, left: Sequence[Key]
    ):
        self._request, self._converter, self._status = request, converter, status
        self._left = left
        self._tile = measure.measure_tile(request.synthetic)
        self._dim_of: dict[str, int] = {}
        self._n_bytes: dict[str, int] = {}
        self._ledger = earlier.Ledger(request.embeddings, request.results)
        self.unmeasured: list[str] = []
        """Metrics that are left to compute and are not in the estimate."""
        self.earlier: list[str] = []
        """What is taken from earlier results, in words."""

    def _of(self, kind: str) -> list[Key]:
        return [key for key in self._left if key.kind == kind]

    def _n_rows(self, dataset: str) -> int:
        """Patches of a dataset; those of the benchmark before it is there are rounded."""
        known = [
            s.total
            for k, s in self._status.steps.items()
            if k[0] == EXTRACT and k.dataset == dataset
        ]
        if any(known):
            return max(known)
        if dataset == SYNTHETIC:
            return synthetic_tiles.n_tiles(self._request.synthetic)
        images = (s for s in SOURCES.get(dataset, ()) if s.is_on_hub)
        return sum(source.n_bytes or 0 for source in images) // BYTES_A_TILE

    def estimate(self) -> dict[str, float]:
        """Seconds by kind of step."""
        seconds = dict.fromkeys(("start", FETCH, CONVERT, EXTRACT, EVALUATE, REPORT), 0.0)
        if not self._left:
            return seconds
        seconds["start"] = START_S
        if Key(FETCH, dataset=SYNTHETIC) in self._left:
            seconds[FETCH] = self._n_rows(SYNTHETIC) * self._tile.draw_s
        self._estimate_extraction(seconds)
        self._estimate_evaluation(seconds)
        n_results = len(self._status.cells) * len(self._request.metrics)
        if self._of(REPORT):
            seconds[REPORT] = REPORT_S + RESULT_S * n_results
        return seconds

    def _estimate_extraction(self, seconds: dict[str, float]) -> None:
        request = self._request
        on_cpu = jax.local_devices()[0].platform == "cpu"
        decode_s = self._tile.decode_s / measure.decoding_threads()
        for model in dict.fromkeys(key.model for key in self._of(EXTRACT)):
            known = self._ledger.encoder_speed(model)
            speed = known or measure.measure_encoder(
                request.specs[model],
                preset=request.preset,
                batch_size=request.batch_size,
                tile_px=request.synthetic.tile_px,
            )
            self._dim_of[model] = speed.dim
            # Cores that embed do not decode; what was measured of a store has both.
            tile_s = speed.tile_s + decode_s if on_cpu else max(speed.tile_s, decode_s)
            if known is not None:
                tile_s = speed.tile_s
                self.earlier.append(f"extract {model}")
            for key in self._of(EXTRACT):
                if key.model == model:
                    step = self._status.steps[key]
                    n = self._n_rows(key.dataset) - step.done
                    seconds[EXTRACT] += speed.start_s + n * tile_s

    def _estimate_evaluation(self, seconds: dict[str, float]) -> None:
        request, left = self._request, self._of(EVALUATE)
        share_of = {k: 1 - self._status.steps[k].done / len(request.metrics) for k in left}
        unknown: dict[Key, list[str]] = {}
        for dataset in dict.fromkeys(key.dataset for key in left):
            known = self._ledger.metric_seconds(dataset, request.metrics)
            if known:
                self.earlier.append(f"evaluate {', '.join(known)} on {dataset}")
            for key in (key for key in left if key.dataset == dataset):
                seconds[EVALUATE] += share_of[key] * sum(known.values())
                unknown[key] = [m for m in request.metrics if m not in known]
        asked = [m for m in request.metrics if any(m in names for names in unknown.values())]
        self.unmeasured = [m for m in asked if m not in measure.MEASURED]
        metrics = tuple(m for m in asked if m in measure.MEASURED)
        keys = [k for k in left if self._n_rows(k.dataset) and set(metrics) & set(unknown[k])]
        if not keys:
            return
        most = max(self._n_rows(key.dataset) for key in keys)
        k = request.settings(keys[0].dataset).k
        dim = max(self._dim_of.values(), default=512)
        took = measure.measure_evaluation(metrics, k, n_rows=most, dim=dim)
        seconds[EVALUATE] += took.first_s - took.next_s
        for key in keys:
            seconds[EVALUATE] += share_of[key] * took.of_rows(self._n_rows(key.dataset))

    def list_downloads(self) -> list[Download]:
        """What would come from servers, one entry per repository."""
        found: list[Download] = []
        wanted = [key.dataset for key in self._of(FETCH) if key.dataset in PROTOCOLS]
        for dataset in wanted:
            missing = fetch.survey([dataset], self._request.data)
            for repo in dict.fromkeys(source.repo for source in missing):
                part = [source for source in missing if source.repo == repo]
                site = "huggingface.co/datasets" if part[0].is_on_hub else "github.com"
                n_bytes = sum(source.n_bytes or 0 for source in part)
                found.append(Download(dataset, f"https://{site}/{repo}", n_bytes, part[0].licence))
        for key in self._of(CONVERT):
            spec = self._request.specs[key.model]
            self._n_bytes[key.model] = 4 * weights.count_params(
                registry.network_of(registry.runnable(spec))[1]
            )
            checkpoint = self._request.checkpoints.get(spec.name)
            if not self._converter.is_at_hand(spec, checkpoint):
                found.append(_describe_weights(spec, checkpoint, self._n_bytes[key.model]))
        return found

    def list_disks(self, downloads: Sequence[Download]) -> list[Disk]:
        """Room by disk: of the data, the cache of the hub, the weights, the stores."""
        request = self._request
        of_data = sum(d.n_bytes or 0 for d in downloads if d.what in PROTOCOLS)
        of_cache = sum(d.n_bytes or 0 for d in downloads if d.what not in PROTOCOLS)
        of_output = 0.0
        if Key(FETCH, dataset=SYNTHETIC) in self._left:
            of_output += self._n_rows(SYNTHETIC) * self._tile.n_bytes
        for key in self._of(EXTRACT):
            of_output += 4 * self._n_rows(key.dataset) * self._dim_of.get(key.model, 0)
        of_output += MB * len(self._of(EVALUATE)) + 5 * MB * len(self._of(REPORT))
        places = [
            (request.output, int(of_output)),
            (request.data, of_data),
            (request.weights, sum(self._n_bytes.values())),
            (huggingface_hub.constants.HF_HUB_CACHE, of_cache),
        ]
        by_disk: dict[int, Disk] = {}
        for path, n_bytes in places:
            there = _existing(path)
            disk = os.stat(there).st_dev
            kept = by_disk.get(disk, Disk(path, 0, shutil.disk_usage(there).free))
            by_disk[disk] = Disk(kept.path, kept.needed + n_bytes, kept.free)
        return [d for d in by_disk.values() if d.needed or d.path == request.output]


def _describe_weights(spec: ModelSpec, checkpoint: str | None, n_bytes: int) -> Download:
    where = spec.weights
    repo = where.repo if where else None
    if checkpoint is not None and not checkpoint.startswith("hf://"):
        return Download(spec.name, checkpoint, n_bytes, spec.licence, "NOT THERE: give its file")
    if repo is None and checkpoint is None:
        files_of = f"{where.url or ''} {', '.join(where.files)}".strip() if where else ""
        note = f"cannot be fetched: bring the file and give --checkpoint={spec.name}=<file>"
        return Download(spec.name, files_of or "a file of yours", n_bytes, spec.licence, note)
    page = f"https://huggingface.co/{repo}"
    note = ""
    if where and where.gated:
        token, _ = attempt(huggingface_hub.get_token)
        note = f"gated: accept its terms at {page}; " + (
            "a token is there" if token else "no token found: hf auth login, or set HF_TOKEN"
        )
    return Download(spec.name, checkpoint or page, n_bytes, spec.licence, note)


def _existing(path: str) -> str:
    there = os.path.abspath(os.path.expanduser(path))
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    return there
