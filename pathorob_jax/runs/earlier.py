"""What earlier extractions and evaluations of this machine took, from what they recorded.

Only costs of the same processor, devices and number of processes count, and only of whole work.
"""

import functools
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import jax

from pathorob_jax.core import cost, devices, files
from pathorob_jax.core.attempts import attempt
from pathorob_jax.embeddings import store_files
from pathorob_jax.results.costs import cost_of
from pathorob_jax.results.result_files import read_result
from pathorob_jax.runs.measure import Speed


class Ledger:
    """The costs below a root of stores and a root of results; what cannot be read is left out."""

    def __init__(self, embeddings: str, results: str):
        self._embeddings, self._results = embeddings, results

    @functools.cached_property
    def _machine(self) -> Mapping[str, Any]:
        return cost.machine(devices.make_mesh(jax.local_devices()))

    def encoder_speed(self, model: str) -> Speed | None:
        """What an encoder took by itself: start, and all of a tile, decoding included."""
        tiles, tile_s, start_s, dim = 0, 0.0, 0.0, 0
        for dataset in files.list_folders(files.join(self._embeddings, model)):
            path = files.join(self._embeddings, model, dataset)
            info, error = attempt(functools.partial(store_files.read_info, path))
            if error is not None:
                continue
            for one in store_files.read_costs(path):
                alone = one.get("encoders") == 1 and one.get("tiles", 0) > 0
                if alone and cost.is_of(one, self._machine):
                    tiles += one["tiles"]
                    tile_s += max(0.0, one[cost.SECONDS] - one["start_s"])
                    start_s = max(start_s, one["start_s"])
                    dim = int(info["dim"])
        return Speed(start_s, tile_s / tiles, dim) if tiles else None

    def metric_seconds(self, dataset: str, metrics: Sequence[str]) -> dict[str, float]:
        """Median seconds of those metrics that any model was scored with on a dataset."""
        found: dict[str, list[float]] = {}
        for model in files.list_folders(self._results):
            for metric in metrics:
                path = files.join(self._results, model, dataset, f"{metric}.json")
                if not files.exists(path):
                    continue
                record, _ = attempt(functools.partial(read_result, path))
                took = cost_of(record)
                if took is not None and took[cost.IS_WHOLE] and cost.is_of(took, self._machine):
                    found.setdefault(metric, []).append(took[cost.SECONDS])
        return {metric: median(found[metric]) for metric in metrics if metric in found}
