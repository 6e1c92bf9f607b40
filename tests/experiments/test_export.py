"""Exports at the command line: all ways out of one small study, and refusals of one message."""

import json
import os

import numpy as np
import pytest
import report_records as records
import scripts
import stores

from pathorob_jax.embeddings.import_formats import import_embeddings
from pathorob_jax.results import pathorob_layout
from pathorob_jax.results.result_files import read_results, write_result


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The store of a model, and results of the same name."""
    root = tmp_path_factory.mktemp("study")
    bio, center, slide, _ = (a.ravel() for a in np.indices((2, 2, 3, 4)))
    x = np.random.default_rng(0).standard_normal((48, 6)).astype(np.float32)
    manifest = stores.make_manifest(bio, center, slide + 3 * (center + 2 * bio))
    stores.make_store(root / "embeddings" / "m" / "d", x, manifest)
    for record in (records.make_record("m", "camelyon"), records.make_apd("m", "camelyon")):
        write_result(str(root / "results"), record)
    return root


def files_of(root):
    return sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
    )


def test_all_ways_out(study, tmp_path):
    embeddings, results = f"--embeddings={study}/embeddings", f"--results={study}/results"
    out = f"--output={tmp_path}"
    for flags in (
        ["--format=anndata", embeddings],
        ["--format=parquet", embeddings],
        ["--format=npz", f"{embeddings}/m"],
        ["--format=histoboard", results],
        ["--layout=pathorob", f"{embeddings}/m/d", results],
    ):
        done = scripts.call("export", *flags, out)
        assert (done.code, done.errors) == (0, []), done.text
        again = scripts.call("export", *flags, out)
        assert again.code == 1
        assert "is there already. Give --overwrite to replace it." in again.errors[0]
        assert scripts.call("export", *flags, out, "--overwrite").code == 0
    assert files_of(tmp_path) == [
        "apd/m/camelyon_raw.json",
        "apd/m/camelyon_summary.json",
        "features/m/d/Center_0.npz",
        "features/m/d/Center_1.npz",
        "features/m/d/manifest.csv",
        "m/d.h5ad",
        "m/d.npz",
        "m/d.parquet",
        "models.json",
        "rankings.json",
        "results.json",
        "robustness_index/m/camelyon/-1_0/balanced-accuracies-bio.csv",
        "robustness_index/m/camelyon/-1_0/results_summary.json",
    ]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--embeddings=e"], 2, "expected either --format or --layout"),
        (["--embeddings=e", "--format=npz", "--layout=pathorob"], 2, "expected either --format"),
        (["--format=npz"], 2, "expected --embeddings=<stores> or --results"),
        (["--results=r", "--format=npz"], 2, "npz is none of --results, which has histoboard"),
        (["--embeddings=e", "--format=histoboard"], 2, "histoboard is none of --embeddings"),
        (["--results=r", "--format=histoboard", "--dataset=d"], 2, "it belongs to --embeddings"),
        (["--embeddings=/nowhere", "--format=npz"], 1, "/nowhere: no embedding store"),
        (["--results=/nowhere", "--format=histoboard"], 1, "/nowhere: no results found"),
    ],
)
def test_what_cannot_be_exported_is_one_message(flags, code, words, tmp_path):
    done = scripts.call("export", *flags, f"--output={tmp_path}/out")
    assert done.code == code, done.text
    [error] = done.errors
    assert words in error
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(study, tmp_path, monkeypatch):
    from pathorob_jax.embeddings.exports import archives

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_write_member", fail)
    for flags in (["--format=npz"], ["--layout=pathorob"]):
        embeddings = f"--embeddings={study}/embeddings"
        done = scripts.call("export", *flags, embeddings, f"--output={tmp_path}")
        assert done.code == 1
        assert "cannot be written (No space left on device). Make room" in done.errors[0]
    assert files_of(tmp_path) == []


@pytest.mark.slow
def test_evaluate_and_extract_write_the_layout_too(tmp_path):
    """From tiles to PathoROB's tree, and back: the same embeddings and the same number."""
    sizes = ("--slides=2", "--tiles=4", "--tile_px=32")
    made = scripts.call("synthesize", f"--output={tmp_path}/tiles", *sizes)
    assert made.code == 0, made.text
    extract = [f"--tileset={tmp_path}/tiles", "--dataset=d", f"--output={tmp_path}/e"]
    done = scripts.call("extract", "--model=color_stats", *extract, "--layout=pathorob")
    assert done.code == 0, done.text
    folder = f"{tmp_path}/e/features/color_stats/d"
    import_embeddings(
        folder, f"{folder}/manifest.csv", root=str(tmp_path / "back"), model="b", dataset="d"
    )
    evaluate = [f"--output={tmp_path}/r", "--k=3", "--draws=0", "--layout=pathorob"]
    done = scripts.call("evaluate", f"--embeddings={tmp_path}/e,{tmp_path}/back", *evaluate)
    assert done.code == 0, done.text
    first, second = read_results(f"{tmp_path}/r")
    assert {first.model, second.model} == {"b", "color_stats"}
    assert first.robustness_index == second.robustness_index
    for record in (first, second):
        path = f"{tmp_path}/r/robustness_index/{record.model}/d/-1_3/results_summary.json"
        with open(path) as stream:
            assert json.load(stream)["robustness_index"] == record.robustness_index


@pytest.mark.slow
def test_a_model_with_the_name_of_a_folder_is_refused(study, tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    manifest = stores.make_manifest([0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 2, 3])
    stores.make_store(tmp_path / "e" / pathorob_layout.APD / "d", x, manifest)
    flags = [f"--embeddings={tmp_path}/e", f"--output={tmp_path}/r", "--layout=pathorob"]
    done = scripts.call("evaluate", *flags)
    assert done.code == 2
    assert "the model 'apd' has the name of a folder of PathoROB's layout" in done.errors[0]
