"""Makes neuroharmonize.json; run once, where neuroHarmonize can be installed.

It needs numpy < 2 and so has an environment of its own:

    python -m venv golden && golden/bin/pip install neuroHarmonize==2.5.2
    golden/bin/python tests/data/combat/make_golden.py
"""

import json
import pathlib

import numpy as np
import pandas as pd
from neuroHarmonize import harmonizationApply, harmonizationLearn

CENTERS = ("A", "B", "C")


def make_rows(rng, counts):
    """Rows with shift and scale of the centre, and a class direction."""
    center = np.repeat(np.arange(3), counts)
    bio = np.arange(len(center)) % 2
    x = rng.normal(size=(len(center), 6)) * (1 + 0.4 * center[:, None])
    x += np.array([0.0, 1.5, -1.0])[center][:, None] * np.linspace(0.5, 1.5, 6)
    x[:, 0] += 2 * bio
    # float32, as embeddings are.
    return x.astype(np.float32).astype(np.float64), center, bio


def main():
    rng = np.random.default_rng(20260101)
    fit, new = make_rows(rng, [14, 11, 9]), make_rows(rng, [4, 3, 5])
    golden = {
        name: {"x": x.tolist(), "center": [CENTERS[c] for c in center], "class": bio.tolist()}
        for name, (x, center, bio) in (("fit", fit), ("new", new))
    }
    for name, with_class, reference in (
        ("plain", False, None),
        ("classes", True, None),
        ("reference", False, "B"),
    ):
        tables = []
        for _, center, bio in (fit, new):
            table = pd.DataFrame({"SITE": [CENTERS[c] for c in center]})
            tables.append(table.assign(CLASS=bio) if with_class else table)
        model, adjusted = harmonizationLearn(fit[0], tables[0], ref_batch=reference)
        applied = harmonizationApply(new[0], tables[1], model)
        golden[name] = {"fit": np.asarray(adjusted).tolist(), "new": np.asarray(applied).tolist()}
    path = pathlib.Path(__file__).with_name("neuroharmonize.json")
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
