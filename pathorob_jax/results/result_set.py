"""The result of an evaluation: the records of one model, by metric."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pathorob_jax.results.flatten import as_table
from pathorob_jax.results.record import MAX_LINES, MAX_WIDTH, Record, format_ci


class Results(Mapping[str, Any]):
    """Records by metric; with several confounders by ``<metric>@<column>``.

    ``results["robustness_index"]`` and ``results.robustness_index`` are the same record, whose
    headline number is ``.value``, with ``.ci95`` and ``.support``. ``print(results)`` shows one
    line for each metric.

    Attributes:
        paths: JSON files that were written, including those over several datasets.
    """

    def __init__(self, records: Mapping[str, Any], paths: tuple[str, ...] = ()) -> None:
        self._records = dict(records)
        self.paths = paths

    def __getitem__(self, metric: str) -> Any:
        return self._records[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_records"][name]
        except KeyError:
            known = ", ".join(self.__dict__.get("_records", ()))
            raise AttributeError(
                f"no metric {name!r} in these results; there are: {known}"
            ) from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._records})

    @property
    def warnings(self) -> list[str]:
        """Warnings of all records, each once; read them before comparing numbers."""
        return list(dict.fromkeys(text for r in self._records.values() for text in r.warnings))

    def to_table(self) -> pa.Table:
        """All numbers in tidy form: model, dataset, metric, name, value, low, high."""
        return as_table(self._records.values())

    def to_frame(self) -> Any:
        """``to_table`` as a pandas DataFrame; needs pandas."""
        return self.to_table().to_pandas()

    def __str__(self) -> str:
        lines = [_summarise(metric, record) for metric, record in self._records.items()]
        if len(lines) > MAX_LINES:
            left_out = len(lines) - MAX_LINES + 1
            lines = [*lines[: MAX_LINES - 1], f"... and {left_out} metrics more"]
        return "\n".join(line if len(line) <= MAX_WIDTH else _cut(line) for line in lines)

    __repr__ = __str__


def _summarise(metric: str, record: Record) -> str:
    """Name, value, interval, support, and the number of warnings with the first of them."""
    parts = [f"{metric:<18}{record.headline} {record.value:.4f}"]
    if metric == record.headline:
        parts = [f"{metric:<18}{record.value:.4f}"]
    parts[0] += format_ci(getattr(record, "ci95", None))
    support = getattr(record, "support", None)
    if support is not None:
        parts.append(f"support {support:.0%}")
    if record.warnings:
        n = len(record.warnings)
        parts.append(f"{n} warning{'s' if n > 1 else ''}: {record.warnings[0]}")
    return "  ".join(parts)


def _cut(line: str) -> str:
    return line[: MAX_WIDTH - 4].rstrip() + " ..."
