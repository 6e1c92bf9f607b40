"""The network, the token of the Hugging Face hub, and repositories whose terms must be accepted.

The token is used, but neither it nor anything about it is shown.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    logging,
)

from pathorob_jax.cli.doctor.findings import FAIL, OK, WARN, Finding
from pathorob_jax.data import downloads, sources
from pathorob_jax.models.repositories import Repository

TIMEOUT_S = 5.0
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."


def check_hub(
    repositories: Sequence[Repository], *, endpoint: str | None = None, github: str | None = None
) -> list[Finding]:
    """What the hub and GitHub answer within ``TIMEOUT_S`` each.

    Args:
        repositories: of the encoders that are wanted.
        endpoint: address of the hub; None: that of ``huggingface_hub``, which ``HF_ENDPOINT`` sets.
        github: address of GitHub's files; None: GitHub's.
    """
    logging.set_verbosity_error()
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    wanted = list(dict.fromkeys(repositories))
    needs_token = any(r.is_gated for r in wanted)
    has_token = huggingface_hub.get_token() is not None
    if downloads.is_offline():
        findings = [
            Finding("network", OK, "not asked, HF_HUB_OFFLINE forbids it; what is cached works"),
            _token(has_token, needs_token, None),
        ]
        return findings + [_cached(r) for r in wanted]
    reached, hub = _reach("the hub", endpoint, FAIL)
    _, files = _reach("GitHub (PathoROB's tables of patches)", github or sources.GITHUB_RAW, WARN)
    status = _ask_who(endpoint) if reached and has_token else None
    findings = [hub, files, _token(has_token, needs_token, status)]
    if not reached:
        return findings + [
            Finding("model", FAIL, f"{r.model}: {r.repo} was not asked", "Mend the network first.")
            for r in wanted
        ]
    return findings + [_repository(r, endpoint) for r in wanted]


def _reach(what: str, url: str, bad: str) -> tuple[bool, Finding]:
    host = urlsplit(url).netloc.rpartition("@")[2]
    try:
        get_session().head(url, timeout=TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - whatever the client raises is the finding
        return False, Finding(
            "network",
            bad,
            f"{what}: {host} cannot be reached ({type(error).__name__})",
            "Check the network, proxies (HTTPS_PROXY) and HF_ENDPOINT; with HF_HUB_OFFLINE=1 what "
            "is cached is used.",
        )
    return True, Finding("network", OK, f"{what}: {host} answers")


def _ask_who(endpoint: str) -> int | None:
    """Status of the hub's answer to the token; None: it gave none."""
    try:
        answer: Any = get_session().get(
            f"{endpoint}/api/whoami-v2", headers=build_hf_headers(), timeout=TIMEOUT_S
        )
    except Exception:  # noqa: BLE001 - the network has its own finding
        return None
    return int(answer.status_code)


def _token(has_token: bool, needed: bool, status: int | None) -> Finding:
    if not has_token:
        text = "none, so gated encoders cannot be fetched"
        return Finding("token", FAIL if needed else WARN, text, _LOGIN)
    if status == 401:
        return Finding("token", FAIL, "present, but the hub refuses it (expired, revoked)", _LOGIN)
    taken = "accepted by the hub" if status == 200 else "not tried"
    return Finding("token", OK, f"present, {taken}")


def _repository(one: Repository, endpoint: str) -> Finding:
    """Ask for the place of a file, which only those may know who may read it."""
    url = huggingface_hub.hf_hub_url(one.repo, one.file, revision=one.revision, endpoint=endpoint)
    where = f"{one.model}: {one.repo}"
    page = f"https://huggingface.co/{one.repo}"
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT_S)
    except errors.GatedRepoError:
        return Finding("model", FAIL, f"{where} is gated", f"Accept its terms at {page}. {_LOGIN}")
    except errors.RepositoryNotFoundError:
        mend = f"Check {page}. {_LOGIN}"
        return Finding("model", FAIL, f"{where} is not there, or not for you", mend)
    except errors.EntryNotFoundError:
        mend = "Give the file that you have with --checkpoint."
        return Finding("model", WARN, f"{where} can be read, but has no {one.file}", mend)
    except Exception as error:  # noqa: BLE001 - whatever the client raises is the finding
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = type(error).__name__ + (f", {status}" if status else "")
        return Finding("model", FAIL, f"{where} cannot be read ({why})", "Try again later.")
    return Finding("model", OK, f"{where} can be read")


def _cached(one: Repository) -> Finding:
    found = huggingface_hub.try_to_load_from_cache(one.repo, one.file, revision=one.revision)
    where = f"{one.model}: {one.repo}"
    if isinstance(found, str):
        return Finding("model", OK, f"{where} is in the cache")
    return Finding(
        "model",
        FAIL,
        f"{where} is not in the cache, and was not asked (HF_HUB_OFFLINE)",
        f"Fetch it where there is a network (hf download {one.repo}), or give --checkpoint.",
    )
