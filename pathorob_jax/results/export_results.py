"""Write a folder of results in the formats of other tools."""

import datetime
from collections.abc import Callable
from typing import Any

from pathorob_jax.core import checks, files, replacing
from pathorob_jax.results import histoboard, pathorob_layout
from pathorob_jax.results.result_files import read_results

Write = Callable[[list[Any], str, bool], list[str]]


def export_results(root: str, *, form: str, output: str, overwrite: bool = False) -> list[str]:
    """Write the results below ``root`` to the folder ``output``; return the paths of the files.

    Args:
        root: folder of all results.
        form: a key of ``FORMATS``.
        output: local folder.
        overwrite: replace files that are there.

    Raises:
        UsageError: unknown format.
        FileNotFoundError: there are no results.
        InputError: a result is damaged, a file is there already, or the format has no place for
            any of the results.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> x = np.random.default_rng(0).normal(size=(48, 8))
    >>> _ = pr.evaluate_embeddings(x, rows, k=5, model="mine", output="results")
    >>> [path, _] = pr.export_results("results", form="pathorob", output="out")
    >>> path
    'out/robustness_index/mine/checkpoint/-1_5/results_summary.json'
    """
    checks.check_known(form, FORMATS, what="format")
    return FORMATS[form](read_results(root), output, overwrite)


def _write_layout(records: list[Any], output: str, overwrite: bool) -> list[str]:
    for path in pathorob_layout.list_files(records):
        replacing.check_place(files.join(output, path), overwrite=overwrite)
    return pathorob_layout.write_tree(records, output)


def _write_board(records: list[Any], output: str, overwrite: bool) -> list[str]:
    # The day on which the board's keepers will say that they took the numbers.
    today = datetime.datetime.now(datetime.UTC).date()
    return histoboard.write_files(records, output, date=today, overwrite=overwrite)


FORMATS: dict[str, Write] = {"histoboard": _write_board, "pathorob": _write_layout}
