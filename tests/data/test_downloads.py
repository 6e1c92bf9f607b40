"""Where the login goes, and what is no fault of the network."""

import errno
import types

import huggingface_hub
import pytest

from pathorob_jax.core import faults
from pathorob_jax.data import downloads
from pathorob_jax.data.downloads import Remote
from pathorob_jax.data.sources import Source

SHA256 = "ab" * 32
SOURCE = Source(
    path="made/a.parquet",
    repo="owner/made",
    revision="0" * 40,
    name="data/a.parquet",
    licence="CC0-1.0",
    n_bytes=4,
    sha256=SHA256[:12],
    is_on_hub=True,
)


@pytest.mark.parametrize(("host", "login"), [("hub", "Bearer hf_made_up"), ("cdn", None)])
def test_the_login_goes_along_where_the_hub_itself_has_the_bytes(monkeypatch, host, login):
    answer = types.SimpleNamespace(
        etag=SHA256, size=4, commit_hash=SOURCE.revision, location=f"https://{host}.example/a"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: answer)
    found = downloads.locate(SOURCE, endpoint="https://hub.example", github="")
    assert (found.url, found.n_bytes, found.sha256) == (answer.location, 4, SHA256)
    assert found.headers.get("authorization") == login


def test_a_defect_stays_what_it_is_and_the_disk_is_named(monkeypatch, tmp_path):
    errors = [KeyError("defect"), KeyError("defect"), OSError(errno.ENOSPC, "full")]

    def fail(*_, **__):
        raise errors.pop(0)

    part, remote = str(tmp_path / "part"), Remote("https://hub.example/a", {}, None, "")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(downloads, "http_get", fail)
    with pytest.raises(KeyError, match="defect"):
        downloads.locate(SOURCE, endpoint="https://hub.example", github="")
    with pytest.raises(KeyError, match="defect"):
        downloads.download(SOURCE, remote, part)
    with pytest.raises(faults.WriteError, match=r"part: cannot be written \(No space left"):
        downloads.download(SOURCE, remote, part)
