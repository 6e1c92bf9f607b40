"""Which results on disk answer a request already, so that they need not be computed again."""

from collections.abc import Mapping
from typing import Any

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.privacy import without_folders
from pathorob_jax.embeddings import store_files
from pathorob_jax.evaluation.run import Request
from pathorob_jax.results.result_files import PROVENANCE, read_answer

# What a result records of its store.
_RECORDED = ("identity", "manifest_sha256", "versions")


def find_kept(store_path: str, request: Request) -> list[str]:
    """Metrics of a request whose results on disk are whole, and of this store and these settings.

    Args:
        store_path: folder of the complete store.
        request: with an output, and without several confounders.
    """
    try:
        info = store_files.read_info(store_path)
    except (InputError, OSError):
        return []
    store = without_folders({name: info[name] for name in _RECORDED})
    return [metric for metric in request.metrics if _is_kept(request, metric, store)]


def _is_kept(request: Request, metric: str, store: Mapping[str, Any]) -> bool:
    path = files.join(request.output or ".", request.model, request.dataset, f"{metric}.json")
    if not files.exists(path):
        return False
    try:
        outcome, request_sha256 = read_answer(path)
    except (InputError, OSError):
        return False
    found = getattr(outcome.record, PROVENANCE, {}).get("store", {})
    is_of_store = all(found.get(name) == value for name, value in store.items())
    return is_of_store and not outcome.note and request_sha256 == request.digest() != ""
