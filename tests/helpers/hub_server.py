"""A made-up Hugging Face hub and GitHub on this machine, which can be told to misbehave."""

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from pathorob_jax.data.sources import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def made_bytes(seed, n_bytes):
    return np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8).tobytes()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Hub:
    """A server of files; a context that stops it.

    ``faults`` are taken one by one by requests for bytes: ``cut`` (bytes after which the connection
    ends), ``flip`` (position of a byte that changes), ``short`` (bytes that are left out at the
    end), ``status``, ``stall`` (seconds), ``whole`` (ranges are ignored). ``always`` stays.
    """

    def __init__(self, files, n_table_bytes=3000):
        self.images = {f"data/{name}": data for name, data in files.items()}
        self.tables = {
            "data/metadata/known.csv": made_bytes(90, n_table_bytes),
            "data/metadata/unknown.csv": made_bytes(91, n_table_bytes),
        }
        self.sources = {"made": (*map(self._image, files), *self._table_sources())}
        self.requests, self.faults, self.always, self.commit = [], [], {}, COMMIT
        self.sent, self.logins = 0, []
        self.speed = None  # bytes per piece of 10 ms

    def _image(self, name):
        data = self.images[f"data/{name}"]
        return Source(
            path=f"made/{name}",
            repo="owner/made-up",
            revision=COMMIT,
            name=f"data/{name}",
            licence="CC0-1.0",
            n_bytes=len(data),
            sha256=sha256(data)[:12],
            is_on_hub=True,
        )

    def _table_sources(self):
        for name, data in self.tables.items():
            known = "unknown" not in name
            yield Source(
                path=f"metadata/{name.rpartition('/')[2]}",
                repo="owner/tables",
                revision=COMMIT,
                name=name,
                licence="BSD-3-Clause",
                n_bytes=len(data) if known else None,
                sha256=sha256(data) if known else "",
                is_on_hub=False,
            )

    def data(self, path):
        """What ``<data_dir>/<path>`` should hold."""
        name = path.rpartition("/")[2]
        return self.images.get(f"data/{name}") or self.tables[f"data/metadata/{name}"]

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def ranges(self):
        """The first byte that each request for bytes asked for."""
        return [first for method, _, first in self.requests if method == "GET"]

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.hub.requests.append(("HEAD", self.path, 0))
        self.hub.logins.append(("HEAD", self.headers.get("Authorization")))
        match = re.fullmatch(r"/datasets/owner/made-up/resolve/(\w+)/(.+)", self.path)
        status = self.hub.always.get("head_status")
        if status or match is None or match[2] not in self.hub.images:
            self._answer(status or 404, {})
            return
        if self.hub.always.get("head_stall"):
            time.sleep(self.hub.always["head_stall"])
        data = self.hub.images[match[2]]
        self._answer(
            302,
            {
                "X-Repo-Commit": self.hub.commit,
                "X-Linked-Etag": f'"{sha256(data)}"',
                "X-Linked-Size": str(len(data)),
                "ETag": '"of the pointer"',
                # Another host, as that of the hub's bytes is.
                "Location": f"{self.hub.url}/cdn/{match[2]}?Signature=secret".replace(
                    "127.0.0.1", "localhost"
                ),
            },
        )

    def do_GET(self):
        first = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.hub.requests.append(("GET", self.path.partition("?")[0], first))
        self.hub.logins.append(("GET", self.headers.get("Authorization")))
        fault = self.hub.always | (self.hub.faults.pop(0) if self.hub.faults else {})
        path = self.path.partition("?")[0]
        data = self.hub.images.get(path.removeprefix("/cdn/"))
        data = data or self.hub.tables.get(path.removeprefix(f"/owner/tables/{COMMIT}/"))
        if "status" in fault or data is None:
            self._answer(fault.get("status", 404), {})
            return
        if "stall" in fault:
            time.sleep(fault["stall"])
        data = bytearray(data)
        if "flip" in fault:
            data[fault["flip"]] ^= 1
        data = bytes(data[: len(data) - fault.get("short", 0)])
        is_part = "Range" in self.headers and "whole" not in fault
        body = data[first:] if is_part else data
        self.send_response(206 if is_part else 200)
        self.send_header("Content-Length", str(len(body)))
        if is_part:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        body = body[: fault.get("cut", len(body))]
        step = self.hub.speed or max(len(body), 1)
        try:
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.hub.sent += len(body[start : start + step])
                if self.hub.speed:
                    time.sleep(0.01)
        except OSError:
            pass
        self.close_connection = "cut" in fault

    def _answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
