"""What a check found: its state, in one line, with the mend."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pathorob_jax.core.privacy import redact

OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(NamedTuple):
    """One thing that was checked.

    Attributes:
        name: what was checked, in a word.
        state: ``ok``, ``warn`` (some work cannot be done, or slowly) or ``fail``.
        text: what was found.
        mend: what to do; "" if it is ok.
    """

    name: str
    state: str
    text: str
    mend: str = ""


def as_text(findings: Sequence[Finding]) -> str:
    """One line for each finding, without credentials."""
    width = max((len(f.name) for f in findings), default=0)
    lines = (
        f"{f.state:<4}  {f.name:<{width}}  {f.text}{f'. {f.mend}' if f.mend else ''}"
        for f in findings
    )
    return "".join(redact(" ".join(line.splitlines())) + "\n" for line in lines)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain values, without credentials."""
    plain = [{name: redact(value) for name, value in f._asdict().items()} for f in findings]
    return {"schema_version": 1, "findings": plain}


def failed(findings: Sequence[Finding]) -> list[str]:
    """Names of what failed, each once."""
    return list(dict.fromkeys(f.name for f in findings if f.state == FAIL))
