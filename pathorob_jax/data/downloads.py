"""One file over HTTP: resumed where it was cut, through ``huggingface_hub``.

``locate`` asks the hub what a file is, ``download`` appends to a partial file until it is whole.
What the network or a server does wrong is a ``DownloadError`` with one message.
"""

import io
import os
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    disable_progress_bars,
    logging,
)

from pathorob_jax.core import faults
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.progress import Progress
from pathorob_jax.data.sources import Source

# Whose errors are the network's: the hub's client has had several libraries.
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_TRUE = ("1", "ON", "YES", "TRUE")


class DownloadError(InputError):
    """A file cannot be downloaded now."""


class UnreachableError(DownloadError):
    """There is no network, or a server does not answer."""


class Remote(NamedTuple):
    """Where the bytes of a file are, and what they are.

    Attributes:
        url: to read from.
        headers: to send.
        n_bytes: size; None: unknown.
        sha256: digest or its beginning; "": unknown.
    """

    url: str
    headers: dict[str, str]
    n_bytes: int | None
    sha256: str


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids to connect to anything."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def page_of(source: Source, *, endpoint: str | None, github: str) -> str:
    """The URL of a file."""
    if source.is_on_hub:
        return huggingface_hub.hf_hub_url(
            source.repo,
            source.name,
            repo_type="dataset",
            revision=source.revision,
            endpoint=endpoint,
        )
    return f"{github.rstrip('/')}/{source.repo}/{source.revision}/{source.name}"


def find_cached(source: Source) -> str | None:
    """The file in the cache of the hub, at the pinned revision; None: it is not there."""
    if not source.is_on_hub:
        return None
    found = huggingface_hub.try_to_load_from_cache(
        source.repo, source.name, revision=source.revision, repo_type="dataset"
    )
    return found if isinstance(found, str) else None


def locate(source: Source, *, endpoint: str | None, github: str) -> Remote:
    """Ask the hub for the place, size and digest of a file; GitHub is not asked.

    Raises:
        DownloadError: the file may not be read, is not there, or is another than the pinned one.
        UnreachableError: the hub does not answer.
    """
    url = page_of(source, endpoint=endpoint, github=github)
    headers = {"Accept-Encoding": "identity"}
    if not source.is_on_hub:
        return Remote(url, headers, source.n_bytes, source.sha256)
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        found = huggingface_hub.get_hf_file_metadata(url, timeout=_timeout_s())
    except Exception as error:
        explained = _explain(source, error)
        if explained is None:
            raise
        raise explained from error
    sha256, n_bytes = found.etag or "", found.size
    is_pinned = found.commit_hash == source.revision and n_bytes == source.n_bytes
    if not is_pinned or len(sha256) != 64 or not sha256.startswith(source.sha256):
        raise DownloadError(
            f"{source.repo}: {source.name} is another file there than the pinned one (commit "
            f"{found.commit_hash}, {n_bytes} bytes, sha256 {sha256[:12]}; expected "
            f"{source.revision}, {source.n_bytes}, {source.sha256[:12]}). If HF_ENDPOINT names a "
            "mirror, ask its keeper; else report it."
        )
    headers |= build_hf_headers()
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the place of the bytes is signed
    return Remote(found.location, headers, n_bytes, sha256)


def download(source: Source, remote: Remote, part: str) -> None:
    """Append to the file ``part`` what it lacks; interrupted, it keeps what it has.

    Raises:
        DownloadError: the server refuses, or sends less than it should.
        UnreachableError: the server does not answer.
        WriteError: the disk is full or fails.
    """
    done = os.path.getsize(part) if os.path.exists(part) else 0
    if remote.n_bytes is None or done > remote.n_bytes:
        done = 0
    with faults.writing(part), _Counted(part, source, remote, done) as out:
        try:
            http_get(
                remote.url,
                out,
                resume_size=done,
                headers=dict(remote.headers),
                expected_size=remote.n_bytes,
            )
        except Exception as error:
            explained = _explain(source, error)
            if explained is None:
                raise
            raise explained from error


class _Counted(io.FileIO):
    """A partial file, open behind its first ``done`` bytes, that tells what is written to it.

    It has no buffer: what came is on the disk.
    """

    def __init__(self, path: str, source: Source, remote: Remote, done: int):
        super().__init__(path, "ab" if done else "wb")
        self._progress = None
        if remote.n_bytes is not None:
            self._progress = Progress(source.path, total=remote.n_bytes, unit="byte", done=done)

    def write(self, data: Any) -> int:
        n = super().write(data)
        if self._progress is not None:
            self._progress.update(n)
        return n

    def __exit__(self, *error: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)
        super().__exit__(*error)


def _timeout_s() -> float:
    return float(huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT)


def _explain(source: Source, error: Exception) -> DownloadError | None:
    """One message, without the address, which may be signed; None: no fault of the network."""
    where, kind = f"{source.repo}: {source.name}", type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        page = f"https://huggingface.co/datasets/{source.repo}"
        return DownloadError(
            f"{where}: may not be read (gated or private, {status}). Accept its terms at {page}, "
            "then log in with `hf auth login` (or set HF_TOKEN) and give the command again."
        )
    if status == 404:
        return DownloadError(
            f"{where}: is not there at {source.revision[:12]} (404). If HF_ENDPOINT or "
            "--metadata_url names a mirror, it lacks the file."
        )
    if isinstance(error, errors.OfflineModeIsEnabled) or status is not None:
        return UnreachableError(f"{where}: {kind}{f' ({status})' if status else ''}")
    modules = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if modules & set(_TRANSPORTS):
        return UnreachableError(f"{where}: {kind}")
    if isinstance(error, OSError) and error.errno is None:  # the hub's client: too few bytes
        return DownloadError(f"{where}: the server sent too few bytes.")
    return None
