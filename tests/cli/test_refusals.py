"""Help and refusals of all commands need no JAX, whose import takes seconds.

One process runs all of them, in which JAX cannot be imported.
"""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from pathorob_jax.cli import names

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN_ALL = """
import contextlib, importlib.abc, io, json, sys
from absl import app, flags, logging
from pathorob_jax.cli import main

class NoJax(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("jax", "jaxlib"):
            raise AssertionError(f"{name} is imported")

# What is installed may be another tree's scripts.
others = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.meta_path[:] = [NoJax(), *others]
app.define_help_flags()
kept = set(flags.FLAGS)
done = []
for arguments in json.loads(sys.stdin.read()):
    sys.argv = ["pathorob-jax", *arguments]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        logging.get_absl_handler().python_handler.stream = err
        try:
            main.main()
        except SystemExit as error:
            code = error.code
    for name in set(flags.FLAGS) - kept:
        delattr(flags.FLAGS, name)
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""
# Of each command: flags, and what the message says.
OF_EXTRACT = "--model=color_stats --dataset=d --output=o"
OF_STORE = "--embeddings=stores --output=o"
REFUSED = {
    "fetch": [
        ("--datasets=camelyon", "data_dir"),
        ("--data_dir=d --datasets=camelion", "Did you mean 'camelyon'"),
        ("--data_dir=d --datasets=", "datasets: expected a value"),
        ("--data_dir=d --dryrun", "Unknown command line flag 'dryrun'"),
    ],
    "synthesize": [
        ("--output=o --slides=0", "slides"),
        ("--output=o --tile_px=8", "tile_px"),
        ("--output=o --tiles=many", "tiles"),
        ("--output=rows.csv/o", "rows.csv"),
        ("", "output"),
        ("--output=stores", "stores"),
    ],
    "convert": [
        ("--model=uni", "output: expected"),
        ("--output=o", "expected --model=<name>"),
        ("--model=uni2h --output=o", "Did you mean 'uni2_h'"),
        ("--model=uni2_h --spec=x.yaml --output=o", "expected --model=<name>"),
        ("--spec=x.yaml --output=o", "x.yaml: no such file"),
        ("--from_timm=vit", "--spec="),
        ("--model=uni2_h --output=o --dtype=int8", "dtype"),
    ],
    "verify": [
        ("--images=none", "images"),
        ("--model=uni2h", "Did you mean 'uni2_h'"),
        ("", "expected --model=<name>"),
        ("--spec=x.yaml", "x.yaml: no such file"),
    ],
    "extract": [
        ("--tileset=tiles --dataset=d --output=o", "model: expected --model=<names>"),
        ("--model=colour_stats --tileset=tiles --dataset=d --output=o", "'color_stats'"),
        (f"{OF_EXTRACT} --tileset=nowhere", "nowhere: no such folder"),
        (f"{OF_EXTRACT} --tileset=stores", "stores"),
        (f"{OF_EXTRACT} --tileset=http://host/tiles", "gs://"),
        (f"{OF_EXTRACT} --tileset=tiles --label_column=kind", "missing ['kind']"),
        (f"{OF_EXTRACT} --tileset=tiles --image_range=5", "image_range"),
        (f"{OF_EXTRACT} --tileset=tiles --num_processes=2", "need --multihost"),
        ("--spec=x.yaml --tileset=tiles --dataset=d --output=o", "x.yaml: no such file"),
        ("--model=uni2_h --tileset=tiles --dataset=d --output=o", "converted weights"),
        (f"{OF_EXTRACT} --tileset=tiles --stain=nowhere", "nowhere"),
        (f"{OF_EXTRACT} --tileset=tiles --dataset=a/b", "dataset"),
        (f"{OF_EXTRACT} --tileset=tiles --batch_size=0", "batch_size"),
    ],
    "import": [
        ("--format=nothing", "format"),
        ("--source=x.npy --manifest=rows.csv --model=m --dataset=d --output=o", "x.npy: no such"),
        ("--source=rows.csv --manifest=rows.csv --model=m --dataset=d --output=o", "--format"),
        ("--source=e.npy --manifest=x.csv --model=m --dataset=d --output=o", "x.csv: no such"),
        ("--source=e.npy --model=m --dataset=d --output=o", "exactly one manifest"),
        ("--source=e.npy --manifest=rows.csv --model=a/b --dataset=d --output=o", "model"),
        (
            "--source=e.npy --manifest=rows.csv --model=m --dataset=d --output=o "
            "--center_column=site",
            "expected a column 'site'",
        ),
        ("--source=hf://x/y --manifest=rows.csv --model=m --dataset=d --output=o", "gs://"),
    ],
    "robustify": [
        ("--output=o", "either --embeddings or --tileset"),
        ("--embeddings=nowhere --method=combat --output=o", "nowhere: no embedding store"),
        ("--embeddings=stores --output=o", "method"),
        ("--embeddings=stores --method=combat", "output: give"),
        ("--embeddings=stores --method=reinhard --output=o", "give --tileset"),
        ("--embeddings=stores --robustifier=nowhere --output=o", "nowhere"),
        ("--tileset=nowhere --method=reinhard --output=o", "nowhere: no such folder"),
        ("--tileset=tiles --method=combat --output=o", "combat"),
        ("--tileset=tiles --robustifier=nowhere --output=o", "nowhere"),
        ("--embeddings=stores --method=comba --output=o", "method"),
        ("--embeddings=stores --method=combat --output=o --target=mean", "target"),
    ],
    "evaluate": [
        ("--embeddings=/nowhere --output=o --trials=3", "belongs to clustering_score"),
        ("--embeddings=/nowhere --output=o", "/nowhere: no embedding store"),
        (f"{OF_STORE} --k=word", "k: expected default, auto or a positive number, found 'word'"),
        (f"{OF_STORE} --k=0", "k: expected default, auto or a positive number"),
        (f"{OF_STORE} --k=-3", "k: expected default, auto or a positive number"),
        (f"{OF_STORE} --metrics=robustness", "'robustness_index'"),
        (f"{OF_STORE} --metrics=apd --heads=svm", "heads: unknown name 'svm'"),
        (f"{OF_STORE} --metrics=slide_prediction --presets=max", "presets: unknown name 'max'"),
        (f"{OF_STORE} --draws=20", "draws: expected 200 or more"),
        (f"{OF_STORE} --manifest=x.csv", "x.csv: no such manifest"),
        (f"{OF_STORE} --neighbors=x.npz", "x.npz"),
        (f"{OF_STORE} --metrics=slide_prediction --slide_table=x.csv", "x.csv: no such"),
        (f"{OF_STORE} --dataset=other", "other"),
        ("--embeddings=stores", "output"),
        (f"{OF_STORE} --center_column=a,a", "center_column: expected each column once"),
        (f"{OF_STORE} more", "unexpected arguments ['more']"),
        ("--embeddings=stores --output=rows.csv/o", "rows.csv"),
    ],
    "report": [
        ("--resluts=x", "Did you mean: results"),
        ("--results=nowhere --output=o", "nowhere: no "),
        ("--results=stores --output=o", "stores: no "),
        ("--results=nowhere", "output"),
    ],
    "leaderboard": [
        ("--results=nowhere --output=o", "nowhere: no "),
        ("--results=stores --output=o", "stores: no "),
        ("--results=nowhere", "output"),
        ("--output=o", "results"),
    ],
    "run": [
        ("--k=many", "k: expected default, auto or a positive number"),
        ("--model=colour_stats", "'color_stats'"),
        ("--metrics=robustness", "'robustness_index'"),
        ("--steps=extraction", "'extract'"),
    ],
    "submit": [
        ("--cluster=pbs", "cluster"),
        ("--model=colour_stats", "'color_stats'"),
        ("--nodes=0", "nodes"),
        ("--k=many", "k: expected default, auto or a positive number"),
    ],
    "status": [("--format=yaml", "format"), ("--output=nowhere", "nowhere")],
    "export": [
        ("--output=o", "either --format or --layout"),
        ("--output=o --format=npz", "--embeddings=<stores> or --results"),
        ("--embeddings=nowhere --format=npz --output=o", "nowhere"),
        ("--embeddings=stores --format=xlsx --output=o", "format"),
        ("--results=nowhere --format=histoboard --output=o", "nowhere"),
    ],
    "doctor": [
        ("--format=xml", "format"),
        ("--model=uni2h", "'uni2_h'"),
        ("--run=nowhere", "nowhere: nothing was run into this folder"),
    ],
}


@pytest.fixture
def folder(tmp_path):
    """What the flags above name: a table, an array, a tileset, a store that says it is complete."""
    rows = "slide_id,patch_id,biological_class,medical_center\n" + "s,0,a,A\ns,1,b,A\n"
    (tmp_path / "rows.csv").write_text(rows)
    import numpy as np
    from PIL import Image

    np.save(tmp_path / "e.npy", np.ones((2, 3), np.float32))
    (tmp_path / "tiles").mkdir()
    lines = rows.splitlines()
    listed = [f"{lines[0]},path", f"{lines[1]},0.png", f"{lines[2]},1.png"]
    (tmp_path / "tiles" / "manifest.csv").write_text("\n".join(listed) + "\n")
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "tiles" / f"{i}.png")
    store = tmp_path / "stores" / "m" / "d"
    store.mkdir(parents=True)
    (store / "store.json").write_text('{"complete": true}')
    return tmp_path


@pytest.mark.slow
def test_help_and_refusals_need_no_jax(folder):
    assert set(REFUSED) == set(names.SCRIPTS)
    tasks = [([command, "--help"], None) for command in REFUSED]
    tasks += [
        ([command, *flags.split()], part)
        for command, cases in REFUSED.items()
        for flags, part in cases
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps([arguments for arguments, _ in tasks]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
    )
    bad = []
    for (arguments, part), (code, out, err) in zip(tasks, json.loads(done.stdout), strict=True):
        if part is None:
            assert code == 0, (arguments, err)
            assert out.startswith(names.summary(arguments[0]).split(":")[0][:40])
            assert not re.search(r"python -m|experiments\.\w+_", out)
        elif code not in (1, 2) or err.count("error: ") != 1 or part not in err or "Trace" in err:
            bad.append((" ".join(arguments), code, err[-300:]))
    assert not bad, "\n".join(map(str, bad))
