"""What must not leave the machine: credentials out of messages, and paths out of results.

Messages name whole paths, because the user needs them, but no credentials. Results and reports are
passed on, so they name files without their folders.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# A secret may hold a slash, a port is no secret.
_USER_INFO = re.compile(r"(\w[\w+.-]*://)(?:[^/\s@:]*:(?!\d+(?:/|\s|$))[^\s@]*|[^/\s@:]+)@")
_PARAMETER = re.compile(
    r"(?i)\b((?:[\w-]*(?:token|secret|signature|credential|password|(?:access|secret|api)_?key)"
    r"(?:_?id)?|sig)=)[^&\s'\"]+"
)
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{12,}|(?:AKIA|ASIA)[0-9A-Z]{8,})|(?<=Bearer )\S+")
_ABSOLUTE = re.compile(r"^(?:/|~|[A-Za-z]:[\\/]|\w[\w+.-]*://)")


def redact(text: str) -> str:
    """The text without the credentials of URLs, and without access keys and tokens."""
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)


def file_name(source: str) -> str:
    """Name of a file without its folders; of ``<file> + <file>`` those of all."""
    return " + ".join(re.split(r"[\\/]", part.rstrip("/\\"))[-1] for part in source.split(" + "))


def without_folders(value: Any) -> Any:
    """Plain values in which absolute paths and URLs are file names, and no text has credentials.

    ``hf://`` names stay: they name a public repository.
    """
    if isinstance(value, str):
        is_path = _ABSOLUTE.match(value) is not None and not value.startswith("hf://")
        return redact(file_name(value) if is_path else value)
    if isinstance(value, Mapping):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(part) for part in value]
    return value
