"""The doctor finds, one by one, what keeps a machine from the work; it never shows the token."""

import collections
import errno
import json
import os
import re
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import jax
import pytest
import scripts
from huggingface_hub import constants
from machine import DEVICES

from pathorob_jax.cli.doctor import checkup, devices, findings, hub, machine
from pathorob_jax.core.checks import UsageError
from pathorob_jax.models import registry, repositories
from pathorob_jax.models.repositories import Repository

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
GATED = Repository("uni2_h", "owner/gated", "model.bin", None, True)
OPEN = Repository("plain", "owner/open", "model.bin", None, False)
Stat = collections.namedtuple("Stat", "f_bavail f_frsize f_blocks f_files f_favail f_flag")


class Handler(BaseHTTPRequestHandler):
    """A hub: ``owner/gated`` and ``owner/open``; tokens that the server's ``tokens`` name."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        headers, status = {}, 404
        if self.path == "/":
            status = 200
        elif self.path == "/owner/open/resolve/main/model.bin":
            status, headers = 200, {"X-Repo-Commit": "0" * 40, "ETag": '"x"'}
        elif self.path.startswith("/owner/gated/"):
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
            if token in self.server.accepted:
                status, headers = 200, {"X-Repo-Commit": "0" * 40, "ETag": '"x"'}
        elif self.path.startswith("/owner/open/"):
            headers = {"X-Error-Code": "EntryNotFound"}
        elif self.path.startswith("/owner/ill/"):
            status = 503
        else:
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        self.answer(status, headers)

    def do_GET(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.answer(200 if token in self.server.tokens else 401, {})

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads, made.tokens, made.accepted = True, {TOKEN}, set()
    made.url = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    """No token of the one who runs the tests."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    assert huggingface_hub.get_token() is None


def ask(server, *wanted):
    return hub.check_hub(wanted, endpoint=server.url, github=server.url)


def only(found, name):
    [one] = [f for f in found if f.name == name]
    return one


def test_no_token(server, monkeypatch):
    token = only(ask(server), "token")
    assert (token.state, "hf auth login" in token.mend) == (findings.WARN, True)
    found = ask(server, GATED)
    assert only(found, "token").state == findings.FAIL
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = ask(server)
    assert only(found, "token") == findings.Finding("token", "ok", "present, accepted by the hub")
    assert [f.state for f in found] == ["ok"] * 3


def test_a_token_that_the_hub_refuses(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.tokens = set()
    token = only(ask(server), "token")
    assert (token.state, "refuses" in token.text) == ("fail", True)


def test_a_gated_repository(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = ask(server, GATED)
    model = only(found, "model")
    assert model.state == "fail"
    assert model.text == "uni2_h: owner/gated is gated"
    assert "Accept its terms at https://huggingface.co/owner/gated" in model.mend
    assert only(found, "token").state == "ok"
    server.accepted = {TOKEN}
    assert only(ask(server, GATED), "model") == findings.Finding(
        "model", "ok", "uni2_h: owner/gated can be read"
    )
    assert only(ask(server, OPEN), "model").state == "ok"
    lost = only(ask(server, OPEN._replace(repo="owner/lost")), "model")
    assert (lost.state, "not there" in lost.text) == ("fail", True)


@pytest.mark.parametrize(
    ("changes", "state", "text"),
    [
        ({"file": "lost.bin"}, "warn", "plain: owner/open can be read, but has no lost.bin"),
        ({"repo": "owner/ill"}, "fail", "plain: owner/ill cannot be read (HfHubHTTPError, 503)"),
    ],
)
def test_a_repository_without_the_file_and_an_ill_server(server, changes, state, text):
    model = only(ask(server, OPEN._replace(**changes)), "model")
    assert (model.state, model.text) == (state, text)
    assert model.mend


def test_a_token_that_could_not_be_tried(monkeypatch):
    class Cut:
        def head(self, url, timeout):
            """The hub is there."""

        def get(self, url, **options):
            raise ConnectionError("cut")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub, "get_session", Cut)
    token = only(hub.check_hub([]), "token")
    assert token == findings.Finding("token", "ok", "present, not tried")


def test_no_network(server, monkeypatch):
    server.shutdown()
    server.server_close()
    found = ask(server, OPEN)
    assert [(f.name, f.state) for f in found] == [
        ("network", "fail"),
        ("network", "warn"),
        ("token", "warn"),
        ("model", "fail"),
    ]
    assert "cannot be reached (ConnectError)" in found[0].text
    assert "HTTPS_PROXY" in found[0].mend


def test_offline_asks_nobody(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("asked"))
    network, token, model = hub.check_hub([GATED])
    assert (network.state, token.state, model.state) == ("ok", "fail", "fail")
    assert "HF_HUB_OFFLINE" in network.text
    assert "not in the cache" in model.text


def test_offline_what_is_in_the_cache_will_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kept, commit = tmp_path / "models--owner--gated", "0" * 40
    for name in ("refs/main", f"snapshots/{commit}/model.bin"):
        (kept / name).parent.mkdir(parents=True)
        (kept / name).write_text(commit)
    model = only(hub.check_hub([GATED]), "model")
    assert model == findings.Finding("model", "ok", "uni2_h: owner/gated is in the cache")


def test_the_token_is_never_shown(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for tokens, accepted in (({TOKEN}, set()), (set(), set()), ({TOKEN}, {TOKEN})):
        server.tokens, server.accepted = tokens, accepted
        found = [*ask(server, GATED), findings.Finding("x", "fail", f"y {TOKEN}", TOKEN)]
        shown = findings.as_text(found) + json.dumps(findings.as_json(found))
        assert TOKEN not in shown
        assert not re.search(rf"\b{len(TOKEN)}\b", shown)


def disk(free, *, size=100 * machine.GIB, inodes=5):
    return lambda path: Stat(free // 4096, 4096, size // 4096, 10, inodes, 0)


def test_a_full_disk(tmp_path, monkeypatch):
    out = str(tmp_path / "not yet" / "there")
    for free, state in ((2**20, "fail"), (2 * machine.GIB, "warn"), (50 * machine.GIB, "ok")):
        monkeypatch.setattr(machine.os, "statvfs", disk(free))
        found = machine.check_disk(out, of="output")
        assert found.state == state, found
    monkeypatch.setattr(machine.os, "statvfs", disk(2**20 + 4096))
    found = machine.check_folders([out], [("compile cache", str(tmp_path), "Mend.", False)])
    assert [(f.name, f.state) for f in found] == [
        ("disk", "fail"),
        ("disk", "warn"),
        ("access", "ok"),
        ("access", "ok"),
    ]
    assert found[0].text == f"output {out}: 1 MiB free"
    monkeypatch.setattr(machine.os, "statvfs", disk(50 * machine.GIB, inodes=0))
    assert "inodes" in machine.check_disk(out, of="output").text


def test_object_stores_are_not_tried_and_a_failing_disk_is_named(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(machine.os, "statvfs", fail)
    found = machine.check_folders(["gs://bucket/out"], [])
    assert [(f.name, f.state) for f in found] == [("disk", "ok"), ("access", "ok")]
    assert "in an object store" in found[0].text
    assert "tells when it is written to" in found[1].text
    assert machine.check_disk(str(tmp_path), of="output") == findings.Finding(
        "disk", "fail", f"output {tmp_path}: Input/output error", "Give another folder."
    )


def test_small_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "statvfs", disk(2**26, size=2**26))
    found = machine.check_shared_memory(0, str(tmp_path))
    assert found.state == "warn"
    assert found.text.startswith("64 MiB free of 64 MiB")
    assert "--shm-size=2g" in found.mend
    assert machine.check_shared_memory(4, str(tmp_path)).state == "fail"
    monkeypatch.setattr(machine.os, "statvfs", disk(8 * machine.GIB))
    assert machine.check_shared_memory(4, str(tmp_path)).state == "ok"
    assert machine.check_shared_memory(4, str(tmp_path / "none")).state == "ok"


@pytest.mark.parametrize("needed", [True, False])
def test_missing_write_access(needed, tmp_path, monkeypatch):
    def check(path):
        return machine.check_access(path, of="output", mend="Mend.", can_fail=needed)

    assert check(str(tmp_path / "new")) == findings.Finding(
        "access", "ok", f"output {tmp_path}/new: can be written"
    )
    assert os.listdir(tmp_path) == []  # what was tried is gone
    bad = "fail" if needed else "warn"
    found = check("/proc/here")  # where even root may not write
    assert (found.state, found.mend) == (bad, "Mend.")
    assert "cannot be written (" in found.text
    (tmp_path / "file").write_text("")
    assert "cannot be written (Not a directory)" in check(str(tmp_path / "file" / "out")).text
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    found = check(str(tmp_path))
    assert (found.state, "(Permission denied)" in found.text) == (bad, True)


def test_another_jaxlib(monkeypatch):
    assert [f.state for f in machine.check_versions()] == ["ok"]
    found_version = machine.metadata.version

    def other(name):
        return "0.4.1" if name == "jaxlib" else found_version(name)

    monkeypatch.setattr(machine.metadata, "version", other)
    [found] = machine.check_versions()
    assert found.state == "fail"
    assert re.fullmatch(r"jax needs jaxlib\S*, found 0\.4\.1", found.text)
    assert found.mend.startswith("pip install --upgrade 'jaxlib")

    monkeypatch.setattr(devices, "check_devices", lambda: pytest.fail("JAX was started"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "devices" in findings.failed(checkup.examine([]))


def test_a_plugin_of_another_jaxlib(monkeypatch):
    found_version = machine.metadata.version
    plugin = "jax-cuda12-plugin"
    monkeypatch.setattr(
        machine.metadata, "version", lambda n: "0.1.0" if n == plugin else found_version(n)
    )
    [found] = machine.check_versions()
    assert found.text.startswith(f"{plugin} 0.1.0 is not of jaxlib ")


def test_a_package_that_is_absent_and_a_clone_that_is_not_installed(monkeypatch):
    found_version = machine.metadata.version

    def without_flax(name):
        if name == "flax":
            raise machine.metadata.PackageNotFoundError(name)
        return found_version(name)

    def not_installed(name):
        raise machine.metadata.PackageNotFoundError(name)

    wanted = {"pathorob-jax": ["flax>=0.8", "flax>=99; extra == 'more'"], "jax": None}
    monkeypatch.setattr(machine.metadata, "version", without_flax)
    monkeypatch.setattr(machine.metadata, "requires", wanted.get)
    [found] = machine.check_versions()
    assert (found.state, found.text) == ("fail", "pathorob-jax needs flax>=0.8, which is absent")
    assert found.mend == "pip install --upgrade 'flax>=0.8'"
    monkeypatch.setattr(machine.metadata, "requires", not_installed)
    [found] = machine.check_versions()
    assert (found.state, "flax absent" in found.text) == ("ok", True)


def test_devices_are_measured(monkeypatch):
    monkeypatch.setattr(devices, "FIRST_ROWS", 32)
    monkeypatch.setattr(devices, "COPY_BYTES", 2**12)
    timed = []
    monkeypatch.setattr(devices, "_best_s", lambda call, value: timed.append(call(value)) or 0.5)
    [found] = devices.check_devices()
    assert found.state == "ok"
    assert found.text.startswith(f"{DEVICES} x cpu (")
    # 2 * 32^3 operations in half a second; a read and a write of 4 KiB.
    assert "products 0 GFLOP/s (float32), 0 (bfloat16); copies 0.0 GB/s" in found.text
    rates = devices.measure(jax.devices()[0])
    assert rates.float32 == rates.bfloat16 == pytest.approx(2 * 32**3 / 0.5 / 1e9)
    assert rates.copy == 2 * rates.from_host == pytest.approx(2 * 2**12 / 0.5 / 1e9)
    assert {t.dtype.name for t in timed} == {"float32"}  # bfloat16 is summed in float32


def test_a_device_that_fails_is_a_finding(monkeypatch):
    def fail(device):
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory\nmore")

    monkeypatch.setattr(devices, "measure", fail)
    [found] = devices.check_devices()
    assert (found.state, found.text.endswith("(RESOURCE_EXHAUSTED: no memory)")) == ("fail", True)


def test_jax_that_cannot_be_used_is_a_finding(monkeypatch):
    def fail():
        raise RuntimeError("no backend\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    [found] = devices.check_devices()
    assert (found.state, found.text) == ("fail", "JAX cannot be used (no backend)")
    assert "pip install --upgrade jax" in found.mend


@pytest.mark.parametrize("seen", [True, False])
def test_a_gpu_that_jax_sees_and_one_that_it_does_not(monkeypatch, seen):
    monkeypatch.setattr(devices, "measure", lambda device: devices.Rates(1, 2, 3, 4))
    monkeypatch.setattr(devices.hosts, "visible_gpus", lambda: 1)
    if seen:
        gpus = [types.SimpleNamespace(device_kind="H200", platform="gpu")] * 2
        monkeypatch.setattr(jax, "devices", lambda: gpus)
    first, *others = devices.check_devices()
    assert first.text.startswith("2 x H200: products 1 GFLOP/s" if seen else f"{DEVICES} x cpu (")
    assert [(f.state, f.mend) for f in others] == (
        [] if seen else [("warn", "pip install 'jax[cuda12]'")]
    )


def test_repositories_are_those_of_the_registry():
    found = {r.model: r for r in repositories.find_repositories(list(registry.MODELS))}
    for name, spec in registry.MODELS.items():
        if not (spec.weights and spec.weights.repo):
            assert name not in found
            continue
        one = found.pop(name)
        assert (one.repo, one.is_gated) == (spec.weights.repo, spec.weights.gated)
        assert one.revision == spec.weights.revision
        assert one.file in (spec.weights.files or ("config.json",))
    assert not found
    with pytest.raises(UsageError, match="Did you mean 'uni2_h'"):
        repositories.find_repositories(["uni2h"])


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "measure", lambda device: devices.Rates(1, 2, 3, 4))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(machine.os, "statvfs", disk(50 * machine.GIB))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    done = scripts.call("doctor", f"--output={tmp_path}/a,{tmp_path}/b")
    assert (done.code, done.errors) == (0, [])
    lines = done.out.splitlines()
    assert all(re.match(r"(ok|warn) +[\w/]+ +\S", line) for line in lines), done.out
    assert sum("output " in line for line in lines) == 4  # disk and access of two folders
    monkeypatch.setattr(machine.os, "statvfs", disk(0))
    done = scripts.call("doctor", f"--output={tmp_path}", "--format=json")
    assert (done.code, done.errors) == (1, ["error: disk: see the lines that begin with fail."])
    value = json.loads(done.out)
    assert value["schema_version"] == 1
    assert {"name", "state", "text", "mend"} == set(value["findings"][0])
    done = scripts.call("doctor", "--model=uni2h")
    assert (done.code, done.out) == (2, "")


@pytest.mark.campaign
def test_on_this_machine():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.doctor"], capture_output=True, text=True, check=False
    )
    assert re.search(r"^ok +devices .* GFLOP/s", done.stdout, re.M), done.stdout + done.stderr
