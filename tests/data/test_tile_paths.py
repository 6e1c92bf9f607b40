"""Paths inside a tileset: one rule for both formats, and no file or server beyond it by default."""

import http.server
import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tilesets import IMAGE_TYPE, encode

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import tile_paths
from pathorob_jax.data.decode import TileError, decode_tile
from pathorob_jax.data.tileset import open_tileset

PIXELS = np.full((4, 4, 3), 77, np.uint8)
PNG = encode(Image.fromarray(PIXELS))
COLUMNS = {
    "slide_id": ["s0", "s1"],
    "patch_id": ["0", "0"],
    "biological_class": ["x", "y"],
    "medical_center": ["A", "B"],
}


def write_folder(root, path):
    table = COLUMNS | {"path": ["first.png", path]}
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    (root / "manifest.csv").write_text("\n".join(lines))


def write_parquet(root, path):
    cells = [{"bytes": None, "path": "first.png"}, {"bytes": None, "path": path}]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE_TYPE)} | COLUMNS), root / "a.parquet")


@pytest.fixture(params=[write_folder, write_parquet], ids=["folder", "parquet"])
def write(request, tmp_path):
    """Writes a tileset of two tiles, the second at the given path; returns its folder."""
    root = tmp_path / "home" / "tiles"
    (root / "sub").mkdir(parents=True)
    for name in ("first.png", "sub/a.png", "a b.png", "a%20b.png", "#1.png", "x:y.png", "~z.png"):
        (root / name).write_bytes(PNG)
    (tmp_path / "home" / "out.png").write_bytes(PNG)

    def with_path(path):
        request.param(root, path)
        return str(root)

    return with_path


def read_second(tileset):
    return decode_tile(*tileset.reader.read(1))


@pytest.mark.parametrize(
    "path",
    [
        *("sub/a.png", "./sub/a.png", "sub//a.png", "sub/../sub/a.png", "sub/../first.png"),
        *("a b.png", "a%20b.png", "#1.png", "x:y.png", "~z.png"),
    ],
)
def test_relative_paths_inside_are_read(write, path):
    np.testing.assert_array_equal(read_second(open_tileset(write(path))), PIXELS)


OUTSIDE = {
    "../out.png": "leads out of the tileset's folder",
    "sub/../../out.png": "leads out of the tileset's folder",
    "../tiles/first.png": "leads out of the tileset's folder",
    "{home}/out.png": "is absolute",
    "{home}/tiles/first.png": "is absolute",
    "file://{home}/out.png": "is a URL",
    "FILE://{home}/out.png": "is a URL",
}


@pytest.mark.parametrize("path", OUTSIDE)
def test_local_paths_that_lead_out_need_the_flag(write, tmp_path, path):
    real = path.format(home=tmp_path / "home")
    root = write(real)
    with pytest.raises(InputError, match=r"--allow_paths=local\.$") as caught:
        open_tileset(root)
    assert not isinstance(caught.value, TileError), "of the tileset, not of one tile"
    assert f"the path {real!r} {OUTSIDE[path]}" in str(caught.value)
    assert ("line 3" in str(caught.value)) or ("a.parquet row 1" in str(caught.value))
    for allow in ("local", "any"):
        tileset = open_tileset(root, allow_paths=allow)
        np.testing.assert_array_equal(read_second(tileset), PIXELS)


@pytest.mark.parametrize("path", ["C:\\tiles\\a.png", "c:/tiles/a.png"])
def test_paths_of_windows_are_absolute(write, path):
    with pytest.raises(InputError, match=r"is absolute.*--allow_paths=local"):
        open_tileset(write(path))


@pytest.fixture
def server():
    """A server on this machine that counts what is asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:SECRET@bucket/a.png?endpoint_override={server}&scheme=http&region=x",
        "s3://bucket/a.png?endpoint_override={server}&scheme=http&region=x",
        *("gs://bucket/a.png", "gcs://bucket/a.png", "hdfs://{server}/a.png", "http://{server}/a"),
        *("abfss://a@b/c.png", "S3://bucket/a.png", "weird+x://a/b"),
    ],
)
def test_no_server_is_asked_unless_the_flag_allows_it(write, server, url, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAVICTIM")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    host, asked = server
    root = write(url.format(server=host))
    for allow in ("inside", "local"):
        with pytest.raises(InputError, match=r"is a URL.*--allow_paths=any\.$") as caught:
            open_tileset(root, allow_paths=allow)
        assert "SECRET" not in str(caught.value)
    assert asked == []


def test_a_linked_file_that_changed_is_not_followed_out(tmp_path):
    root = tmp_path / "tiles"
    root.mkdir()
    (root / "first.png").write_bytes(PNG)
    (root / "second.png").write_bytes(PNG)
    write_parquet(root, "second.png")
    tileset = open_tileset(str(root))
    write_parquet(root, "../second.png")
    with pytest.raises(InputError, match="leads out of the tileset's folder"):
        tileset.reader.read(1)


@pytest.mark.parametrize(
    ("path", "inner"),
    [
        *(("a.png", "a.png"), ("b/c.png", "b/c.png"), ("b/../a.png", "a.png"), ("x:y", "x:y")),
        *(("s3://bucket/tiles/b/c.png", "b/c.png"), ("s3://bucket/tiles/a b", "a b")),
    ],
)
def test_a_remote_tileset_names_its_own_files(path, inner):
    for root in ("s3://bucket/tiles", "s3://bucket/tiles/"):
        found = tile_paths.resolve(root, [path], where=["here"])
        assert found == [f"s3://bucket/tiles/{inner}"]


@pytest.mark.parametrize(
    "path",
    [
        *("s3://bucket/other/a.png", "s3://bucket/tiles2/a.png", "gs://bucket/tiles/a.png"),
        *("s3://bucket/tiles/../a.png", "s3://bucket/tiles/a.png?endpoint_override=evil"),
        *("../a.png", "a.png?endpoint_override=evil", "b/%2e%2e/%2e%2e/a.png", "a.png#x"),
    ],
)
def test_a_remote_tileset_stays_inside(path):
    with pytest.raises(InputError, match="--allow_paths=any"):
        tile_paths.resolve("s3://bucket/tiles", [path], allow="local", where=["here"])


def test_the_message_counts_the_paths(tmp_path):
    paths = ["a.png", "/x/1.png", "/x/2.png", "s3://b/c"]
    with pytest.raises(InputError, match=r"^w1: the path '/x/1.png' .*\(3 such paths\).*=any\.$"):
        tile_paths.resolve(str(tmp_path), paths, where=["w0", "w1", "w2", "w3"])


def test_other_choices_are_refused(tmp_path):
    with pytest.raises(UsageError, match="allow_paths: unknown name 'all'"):
        open_tileset(str(tmp_path), allow_paths="all")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("sub\\a.png", r"sub/a\.png is there: write paths with '/'"),
        ("SUB/A.png", r"sub/a\.png is there: upper and lower case differ"),
        ("sub/none.png", "no such file, though the tileset lists it. Put it back"),
    ],
)
def test_a_file_in_another_spelling_is_named(write, path, hint):
    with pytest.raises(TileError, match=hint):
        open_tileset(write(path)).reader.read(1)


@pytest.mark.parametrize("name", ["s3://bucket/tiles/SUB/A.png", "{root}/first.png/SUB/A.png"])
def test_no_other_spelling_is_sought_on_servers_or_below_files(write, monkeypatch, name):
    def missing(path):
        raise FileNotFoundError(path)

    name = name.format(root=write("first.png"))
    monkeypatch.setattr(tile_paths.files, "read_bytes", missing)
    with pytest.raises(TileError, match=r"A\.png: no such file, though .* lists it\. Put it back"):
        tile_paths.read_image(name)


def test_names_that_no_file_can_have_are_one_message(write, tmp_path):
    long = open_tileset(write("a" * 300 + ".png"))
    with pytest.raises(InputError, match=r"aaa\.png: (cannot be read|no such file)"):
        long.reader.read(1)
    with pytest.raises(InputError, match="holds a NUL"):
        tile_paths.resolve(str(tmp_path), ["a\0b"], where=["here"])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_a_symbolic_link_leads_where_its_owner_put_it(write, tmp_path):
    root = write("link.png")
    os.symlink(tmp_path / "home" / "out.png", f"{root}/link.png")
    np.testing.assert_array_equal(read_second(open_tileset(root)), PIXELS)
