"""Compiled programs kept on disk between runs of the tests, and shared by their processes.

Compiling takes most of the time of the tests, and JAX can keep what it compiles. But it writes an
entry in place: another process may read half of it, and one that is killed leaves it so for good.
"""

import os
import pathlib
import tempfile
import time

DAYS_KEPT = 30


def set_environment():
    """Before jax is imported: where programs are kept. Processes started later inherit it."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(home, "pathorob_jax", "test-xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def make_safe():
    """In this process, an entry appears whole or not at all, and a broken one counts as absent."""
    from jax._src import compilation_cache, lru_cache

    read = lru_cache.LRUCache.get

    def get(self, key):
        value = read(self, key)
        if value is not None:
            try:
                compilation_cache.decompress_executable(value)
            except Exception:  # noqa: BLE001  zlib's or zstd's, which share no class
                _entry(self, key).unlink(missing_ok=True)
                return None
        return value

    def put(self, key, value):
        if _entry(self, key).exists():
            return
        with tempfile.NamedTemporaryFile(dir=self.path, prefix="part-", delete=False) as part:
            part.write(value)
        os.replace(part.name, _entry(self, key))

    lru_cache.LRUCache.get, lru_cache.LRUCache.put = get, put


def drop_old():
    """Remove what was written long ago: programs of code that is no more."""
    oldest_s = time.time() - DAYS_KEPT * 86_400
    for entry in pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*"):
        try:
            if entry.stat().st_mtime < oldest_s:
                entry.unlink()
        except FileNotFoundError:  # another process was faster
            pass


def _entry(cache, key):
    return pathlib.Path(cache.path) / f"{key}-cache"
