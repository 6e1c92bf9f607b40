"""A folder of this machine that stands for a bucket of an object store."""

import pyarrow.fs as pafs

from pathorob_jax.core import files


def stand_for(monkeypatch, folder, url="s3://bucket/"):
    """Paths below ``url`` are files of ``folder``; others stay what they are."""
    inside, local = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), files.filesystem

    def filesystem(path):
        if path.startswith(url):
            return inside, path.removeprefix(url).rstrip("/")
        return local(path)

    monkeypatch.setattr(files, "filesystem", filesystem)
