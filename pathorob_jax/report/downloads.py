"""Files that the page holds as links: tables and provenance, as far as they fit."""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

# Bytes of all links of a page, which stays below 3 MB; the smallest files come first.
MAX_BYTES = 400_000
_PLAIN = "!'()*,/:;@?=$+-._~"


class Download(NamedTuple):
    """A file: its name, the link to it, and whether the link holds the file itself."""

    name: str
    link: str
    is_inside: bool


def embed(texts: Mapping[str, str], *, limit: int = MAX_BYTES) -> list[Download]:
    """Files by name, sorted; those that fit are inside, the others are links to files beside."""
    kinds = {"csv": "text/csv", "json": "application/json"}
    inside: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: (len(texts[name]), name)):
        kind = kinds[name.rpartition(".")[2]]
        link = f"data:{kind};charset=utf-8,{quote(texts[name], safe=_PLAIN)}"
        if len(link) > limit:
            break
        inside[name], limit = link, limit - len(link)
    return [Download(n, inside.get(n, quote(n)), n in inside) for n in sorted(texts)]
