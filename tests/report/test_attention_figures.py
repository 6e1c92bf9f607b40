"""Figures of slides as classifiers see them: which are drawn, and as what kind of file."""

import base64

import numpy as np
import pytest

from pathorob_jax.report import attention_figures
from pathorob_jax.results.attention_files import write_attention


def write_map(path, title):
    write_attention(
        str(path),
        title,
        names={"slide_id": ["s1"] * 2, "patch_id": ["0", "1"]},
        places=np.array([[0, 0], [0, 224.0]]),
        attention=np.array([0.25, 0.75]),
        scores=np.array([[0.5, -0.5], [1, 2]]),
        classes=("a", "b"),
    )


def draw(root):
    return attention_figures.write_slides(
        str(root / "results"), [("own", "ours", "m")], str(root / "report"), is_inside=True
    )


def test_a_damaged_map_is_left_out_with_a_word(tmp_path, caplog):
    folder = tmp_path / "results/m/own/attention/mean/split_0_id"
    for name in ("slide_0", "slide_1"):
        write_map(folder / f"{name}.parquet", f"{name}, mean")
    path = folder / "slide_0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    [(model, name, views)] = draw(tmp_path)
    assert (model, name, [view.words for view in views]) == ("m", "ours", ["slide_1, mean"])
    assert "slide_0.parquet: cannot be read as a map of attention" in caplog.text
    assert "The report has no such map." in caplog.text
    path.with_name("slide_1.parquet").unlink()
    assert draw(tmp_path) == []


@pytest.mark.parametrize("name", ["北京", "القاهرة", "दिल्ली"])
def test_a_script_that_no_picture_holds_is_text_of_a_drawing(tmp_path, name):
    write_map(tmp_path / "results/m/own/attention/mean/split_0_id/slide_0.parquet", name)
    [(_, _, [view])] = draw(tmp_path)
    kind, _, data = view.link.partition(";base64,")
    assert kind == "data:image/svg+xml"
    svg = base64.b64decode(data).decode()
    assert name in svg
    assert "DejaVu" not in svg
