"""Stores in, stores out; the script; what is refused."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scripts
import stores

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import CENTER, SLIDE
from pathorob_jax.embeddings.store import open_store
from pathorob_jax.embeddings.store_search import find_datasets
from pathorob_jax.embeddings.store_writer import StoreWriter
from pathorob_jax.robustify import run
from pathorob_jax.robustify.robustifier import fit_robustifier
from pathorob_jax.robustify.robustifier_files import load_robustifier


@pytest.fixture
def parent(tmp_path, rng):
    slide = np.arange(120) // 5
    bio, center = slide % 2, slide // 8
    x = rng.normal(size=(120, 6)) + 3 * rng.normal(size=(3, 6))[center]
    manifest = stores.make_manifest(bio, center, slide)
    return stores.make_store(tmp_path / "embeddings" / "ours" / "breast", x, manifest)


def apply(parent, tmp_path, **options):
    found = find_datasets(str(tmp_path / "embeddings" / "ours"), [])
    return run.robustify(found, root=str(tmp_path / "embeddings"), **options)


def test_a_store_of_its_own(parent, tmp_path):
    [store] = apply(parent, tmp_path, method="combat")
    assert store.path == str(tmp_path / "embeddings" / "ours+combat" / "breast")
    kept = load_robustifier(str(tmp_path / "embeddings" / "ours+combat" / "robustifier"))
    expected = kept.transform(parent.read(), parent.manifest.column(CENTER))
    np.testing.assert_array_equal(store.read(), expected)
    assert store.manifest.fingerprint() == parent.manifest.fingerprint()
    assert store.info["settings"]["parent"] == "../../ours/breast"
    assert store.info["identity"]["source"]["parent_sha256"] == run.digest_store(parent)


def test_identity_changes_no_byte(parent, tmp_path):
    [store] = apply(parent, tmp_path, method="identity")
    assert store.read().tobytes() == parent.read().tobytes()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"fit_on": "cross_fit"}, "ours+combat-cross_fit"),
        ({"covariates": "biological_class"}, "ours+combat-class"),
        ({"name": "mine"}, "mine"),
    ],
)
def test_names(parent, tmp_path, options, name):
    [store] = apply(parent, tmp_path, method="combat", **options)
    assert store.path.split("/")[-2] == name


def test_a_killed_run_goes_on(parent, tmp_path, monkeypatch):
    wait = StoreWriter.wait

    def killed(self, writing):
        wait(self, writing)
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "wait", killed)
    with pytest.raises(KeyboardInterrupt):
        apply(parent, tmp_path, method="combat")
    monkeypatch.setattr(StoreWriter, "wait", wait)
    [store] = apply(parent, tmp_path, method="combat")
    [again] = apply(parent, tmp_path, method="combat")
    assert again.info == store.info


def test_two_at_once_share_the_chunks(parent, tmp_path, monkeypatch):
    write, taken = StoreWriter.write, []
    both = threading.Barrier(2)

    def slow(self, chunk, embeddings, **options):
        taken.append(chunk)
        if len(taken) <= 2:
            both.wait(60)  # each has a chunk before either goes on
        return write(self, chunk, embeddings, **options)

    monkeypatch.setattr(StoreWriter, "write", slow)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(apply, parent, tmp_path, method="center_means") for _ in range(2)]
        (first,), (second,) = (future.result() for future in futures)
    assert sorted(taken) == [0, 1, 2, 3], "each chunk was written once"
    assert first.info == second.info
    monkeypatch.setattr(StoreWriter, "write", write)
    [alone] = apply(parent, tmp_path, method="center_means", name="alone")
    assert first.read().tobytes() == alone.read().tobytes()


def test_a_saved_one_is_applied(parent, tmp_path):
    apply(parent, tmp_path, method="combat")
    folder = str(tmp_path / "embeddings" / "ours+combat" / "robustifier")
    [store] = apply(parent, tmp_path, method=None, robustifier=folder, name="again")
    first = open_store(str(tmp_path / "embeddings" / "ours+combat" / "breast"))
    np.testing.assert_array_equal(store.read(), first.read())
    with pytest.raises(UsageError, match="rank: a saved robustifier is fitted already"):
        apply(parent, tmp_path, method=None, robustifier=folder, rank=3)


def test_another_fit_does_not_replace_a_robustifier(parent, tmp_path):
    apply(parent, tmp_path, method="combat")
    folder = str(tmp_path / "embeddings" / "ours+combat" / "robustifier")
    with pytest.raises(InputError, match="holds another robustifier"):
        apply(parent, tmp_path, method="center_means", robustifier=folder)
    apply(parent, tmp_path, method="center_means", robustifier=folder, overwrite=True)
    assert load_robustifier(folder).method == "center_means"


def test_rows_of_the_fit(parent, tmp_path):
    slides = sorted(set(parent.manifest.column(SLIDE)))
    centers = parent.manifest.factorize(CENTER).names
    fitted = run.fit_on_store(parent, method="identity", fit_rows=f"{CENTER}={centers[0]}")
    assert fitted.centers == (centers[0],)
    with pytest.raises(InputError, match="no row of .* has slide_id=none"):
        run.choose_rows(parent, "slide_id=none")
    with pytest.raises(InputError, match="has no column 'scanner'"):
        run.choose_rows(parent, "scanner=A")
    with pytest.raises(UsageError, match="fit_on: train needs --fit_rows"):
        run.fit_on_store(parent, method="identity", fit_on="train")
    assert len(run.choose_rows(parent, f"slide_id={slides[0]}")) == 5


def test_unknown_centres_are_refused_before_any_work(parent, tmp_path):
    centers = parent.manifest.factorize(CENTER).names
    one = run.fit_on_store(parent, method="identity", fit_rows=f"{CENTER}={centers[0]}")
    run._check_rows(parent.manifest, one, "refuse", source="x")  # a map without centres knows all
    with pytest.raises(UsageError, match="give --method"):
        apply(parent, tmp_path, method=None)


def test_centres_that_the_fit_did_not_see_are_refused(parent, tmp_path):
    two = np.arange(80)  # of three centres
    fitted = fit_robustifier(parent.read()[two], parent.manifest.take(two), method="center_means")
    root = str(tmp_path / "embeddings")
    message = r"breast: centres \['Center 2'\] were not in the fit, .* Give --unseen=identity"
    with pytest.raises(InputError, match=message):
        run.robustify_store(parent, fitted, root=root, model="m", dataset="breast")
    assert not (tmp_path / "embeddings" / "m").exists()


def test_pairs_need_their_column(parent):
    with pytest.raises(InputError, match=r"^pairs: .*breast has no column 'tissue'; it has"):
        run.fit_on_store(parent, method="paired_subspace", pairs="tissue")


def test_a_store_is_not_written_over_its_parent(parent, tmp_path):
    before = parent.read()
    with pytest.raises(UsageError, match=r"output: .*ours/breast is the store to be robustified"):
        apply(parent, tmp_path, method="center_means", name="ours", overwrite=True)
    np.testing.assert_array_equal(open_store(parent.path).read(), before)
    assert os.listdir(os.path.dirname(parent.path)) == ["breast"], "no robustifier was kept"


def test_a_damaged_robustifier_is_replaced(parent, tmp_path):
    fitted = run.fit_on_store(parent, method="center_means")
    folder = str(tmp_path / "robustifier")
    run.keep_robustifier(fitted, folder, overwrite=False)
    state = tmp_path / "robustifier" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-4])
    run.keep_robustifier(fitted, folder, overwrite=False)
    assert load_robustifier(folder).rows_sha256 == fitted.rows_sha256


def test_one_fit_serves_several_datasets(parent, tmp_path, rng):
    x = rng.normal(size=(120, 6)).astype(np.float32)
    stores.make_store(tmp_path / "embeddings" / "ours" / "colon", x, parent.manifest)
    both = apply(parent, tmp_path, method="center_means", fit_dataset="breast")
    assert [store.path.rsplit("/", 2)[1:] for store in both] == [
        ["ours+center_means", "breast"],
        ["ours+center_means", "colon"],
    ]
    kept = load_robustifier(str(tmp_path / "embeddings" / "ours+center_means" / "robustifier"))
    fitted = run.fit_on_store(parent, method="center_means")
    centers = parent.manifest.column(CENTER)
    expected = fitted.transform(x, centers)
    np.testing.assert_array_equal(both[1].read(), expected)
    np.testing.assert_array_equal(kept.transform(x, centers), expected)
    with pytest.raises(UsageError, match="robustifier: 2 datasets are fitted one by one.*--fit_"):
        apply(parent, tmp_path, method="center_means", robustifier=str(tmp_path / "r"))
    with pytest.raises(UsageError, match="fit_dataset: a saved robustifier is fitted already"):
        apply(parent, tmp_path, method=None, robustifier="r", fit_dataset="breast")


@pytest.mark.slow
def test_the_script(parent, tmp_path):
    root = str(tmp_path / "embeddings")
    command = ["robustify", f"--embeddings={root}/ours", f"--output={root}"]
    command += ["--method=center_means"]
    done = scripts.call(*command)
    assert done.code == 0, done.text
    assert "Cramer's V of the fit: 0.0" in done.text
    info = json.loads((tmp_path / "embeddings/ours+center_means/breast/store.json").read_text())
    assert info["complete"]
    done = scripts.call(*command, "--rank=3")
    assert done.code == 2
    assert "error: rank: method center_means does not use it; leave it out." in done.text
