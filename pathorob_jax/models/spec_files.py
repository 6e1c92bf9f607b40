"""Read YAML from strangers: in bounded time, without repeated names, without tags that build.

YAML lets a small file describe a huge value (aliases of aliases), nest without end, and repeat a
name so that the last one silently counts. All three are refused.
"""

from typing import Any

import yaml

from pathorob_jax.core import files
from pathorob_jax.core.checks import UsageError

_MAX_BYTES = 2**22
_MAX_DEPTH = 32
_MAX_VALUES = 200_000
_STARTS = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_ENDS = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def read_mapping(path: str) -> Any:
    """The plain value of a YAML file; keys of mappings are text.

    Raises:
        UsageError: the file is no YAML, too deep or too large, or repeats a name.
        FileNotFoundError: there is no such file.
    """
    data = files.read_bytes(path)
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{path}: expected a YAML of encoders, found {len(data):,} bytes.")
    try:
        _check_depth(data)
        loader = yaml.CSafeLoader(data)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _size(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, LookupError, OverflowError) as error:
        raise UsageError(f"{path}: expected YAML, found {str(error)[:500]}.") from error


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting before anything that recurs sees it."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.CSafeLoader):
        depth += isinstance(event, _STARTS) - isinstance(event, _ENDS)
        if depth > _MAX_DEPTH:
            raise ValueError(f"values nested more than {_MAX_DEPTH} deep")


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Number of values in a node, those of aliases counted each time; checks names on the way."""
    known = sizes.get(id(node))
    if known is not None:
        if known == 0:
            raise ValueError("an alias of itself")
        return known
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_names(node)
        size += sum(_size(key, sizes) + _size(value, sizes) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(value, sizes) for value in node.value)
    if size > _MAX_VALUES:
        raise ValueError(f"aliases that stand for more than {_MAX_VALUES:,} values")
    sizes[id(node)] = size
    return size


def _check_names(node: yaml.MappingNode) -> None:
    names: set[str] = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            shown = key.value[:80] if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise ValueError(f"a name that is no text in line {line}: {shown}; put it in quotes")
        if key.value in names:
            raise ValueError(f"{key.value[:80]!r} twice, the second time in line {line}")
        names.add(key.value)
