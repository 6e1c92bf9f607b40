"""Files of the Hugging Face hub, from the local cache or downloaded with your login.

``parse`` reads ``hf://owner/name``; ``find_file`` takes a repo and names of files, the preferred
one first, and returns the path of the first that exists, in the cache of the hub.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import logging

from pathorob_jax.core.checks import InputError, UsageError

from . import checkpoints

SCHEME = "hf://"
_PLACE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.%-]+))?(/(?P<file>.+))?")
COMMON_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Place(NamedTuple):
    """A repo of the hub, or a file in it.

    Attributes:
        repo: ``owner/name``.
        revision: branch, tag or commit; None: the main branch.
        file: name of a file in the repo; None: the first usual one.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}" + (f"/{self.file}" if self.file else "")


def parse(name: str) -> Place:
    """The place that ``hf://owner/name[@revision][/file]`` names.

    Raises:
        UsageError: the name is of another form.
    """
    match = _PLACE.fullmatch(name.removeprefix(SCHEME))
    if match is None or any(part in (".", "..") for part in name.split("/")):
        raise UsageError(
            f"checkpoint: expected {SCHEME}owner/name, {SCHEME}owner/name@revision or "
            f"{SCHEME}owner/name/file, found {name[:200]!r}."
        )
    return Place(match["repo"], match["revision"], match["file"])


def find_file(repo: str, names: Sequence[str], *, revision: str | None = None) -> str:
    """Path of the first file that exists in the repo; it is downloaded unless cached.

    Args:
        repo: ``owner/name``.
        names: names of files, the preferred one first.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        InputError: there is no such repo or file, its terms were not accepted, or there is no
            network; the message says what to do.
    """
    logging.set_verbosity_error()  # it logs every attempt; the message below has the outcome
    wanted = list(dict.fromkeys(names))
    try:
        return _find_file(repo, wanted, revision)
    except errors.HFValidationError as error:
        raise InputError(
            f"{repo}: no name of a repo on the Hugging Face hub. Give {SCHEME}owner/name, or a "
            "file that is there."
        ) from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo}: gated. Accept its terms at https://huggingface.co/{repo}, then log in "
            "with `hf auth login` (or set HF_TOKEN) and give the command again."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{repo}: no such repo on huggingface.co, or a private one: check the name, and "
            "log in with `hf auth login` (or set HF_TOKEN)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{repo}: has no revision {revision!r}; give {SCHEME}{repo}@main."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(_offline(repo, wanted)) from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        # The text of an error can hold the address with its signature.
        raise InputError(f"{_offline(repo, wanted)} ({type(error).__name__})") from error


def is_cached(repo: str, names: Sequence[str], *, revision: str | None = None) -> bool:
    """Whether one of the files lies in the cache of the hub; nothing is asked."""
    found = (
        huggingface_hub.try_to_load_from_cache(repo, name, revision=revision) for name in names
    )
    return any(isinstance(path, str) for path in found)


def _find_file(repo: str, wanted: Sequence[str], revision: str | None) -> str:
    for name in wanted:
        try:
            return _fetch(repo, name, revision, local=True)
        except errors.LocalEntryNotFoundError:
            continue
    for name in wanted:
        try:
            return _fetch(repo, name, revision, local=False)
        except errors.LocalEntryNotFoundError:
            raise
        except errors.EntryNotFoundError:
            continue
    raise InputError(
        f"{repo}: has none of {', '.join(wanted)}; download its checkpoint yourself and give the "
        "file with --checkpoint."
    )


def _fetch(repo: str, name: str, revision: str | None, *, local: bool) -> str:
    path = huggingface_hub.hf_hub_download(repo, name, revision=revision, local_files_only=local)
    if name.endswith(checkpoints.INDEX):
        for shard in sorted(set(checkpoints.read_index(path).values())):
            huggingface_hub.hf_hub_download(repo, shard, revision=revision, local_files_only=local)
    return path


def _offline(repo: str, names: Sequence[str]) -> str:
    return (
        f"{repo}: cannot be reached, and none of {', '.join(names)} is in the local cache. Fetch "
        f"one where there is a network (hf download {repo}) or give a file with --checkpoint."
    )
