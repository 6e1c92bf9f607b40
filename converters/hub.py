"""Files of the Hugging Face hub, from the local cache or downloaded with your login.

``find_file`` takes a repo id (``owner/name``, ``owner/name@revision``) and names of files, the
preferred one first, and returns the path of the first that exists, in the cache of the hub.
"""

import json
import os
import re
from collections.abc import Sequence

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import logging

from pathorob_jax.core.checks import InputError

_REPO = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
COMMON_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def is_repo(name: str) -> bool:
    """Whether a name has the form of a repo id, and no such file or folder exists."""
    return bool(_REPO.match(name)) and not os.path.exists(name)


def find_file(repo: str, names: Sequence[str], *, revision: str | None = None) -> str:
    """Path of the first file that exists in the repo; it is downloaded unless cached.

    Args:
        repo: ``owner/name`` or ``owner/name@revision``.
        names: names of files, the preferred one first; usual names are tried afterwards.
        revision: revision if ``repo`` does not give one; None: the main branch.

    Raises:
        InputError: there is no such repo or file, its terms were not accepted, or there is no
            network; the message says what to do.
    """
    logging.set_verbosity_error()  # it logs every attempt; the message below has the outcome
    repo, _, given = repo.partition("@")
    revision = given or revision
    wanted = list(dict.fromkeys([*names, *COMMON_FILES]))
    for name in wanted:
        try:
            return _fetch(repo, name, revision, local=True)
        except errors.LocalEntryNotFoundError:
            continue
    for name in wanted:
        try:
            return _fetch(repo, name, revision, local=False)
        except errors.LocalEntryNotFoundError as error:
            raise InputError(_offline(repo, wanted)) from error
        except errors.EntryNotFoundError:
            continue
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
            raise InputError(f"{repo}: has no revision {revision!r}; give {repo}@main.") from error
        except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
            raise InputError(f"{_offline(repo, wanted)} ({error})") from error
    raise InputError(
        f"{repo}: has none of {', '.join(wanted)}; download its checkpoint yourself and give the "
        "file with --checkpoint."
    )


def _fetch(repo: str, name: str, revision: str | None, *, local: bool) -> str:
    path = huggingface_hub.hf_hub_download(repo, name, revision=revision, local_files_only=local)
    if name.endswith(".index.json"):
        with open(path, encoding="utf-8") as stream:
            shards = sorted(set(json.load(stream)["weight_map"].values()))
        for shard in shards:
            huggingface_hub.hf_hub_download(repo, shard, revision=revision, local_files_only=local)
    return path


def _offline(repo: str, names: Sequence[str]) -> str:
    return (
        f"{repo}: cannot be reached, and none of {', '.join(names)} is in the local cache. Fetch "
        f"one where there is a network (hf download {repo}) or give a file with --checkpoint."
    )
