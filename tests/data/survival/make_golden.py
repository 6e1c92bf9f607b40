"""Makes sksurv.json; run once, where scikit-survival can be installed (GPL-3, hence not in tests).

python -m venv golden && golden/bin/pip install scikit-survival
golden/bin/python tests/data/survival/make_golden.py
"""

import json
import pathlib
from importlib import metadata

import numpy as np
from sksurv.metrics import concordance_index_censored
from sksurv.nonparametric import kaplan_meier_estimator


def draw(rng, n, *, decimals, share):
    """Times, events and risks; few decimals make ties of both."""
    time = np.round(rng.exponential(5, n), decimals)
    risk = np.round(-np.log(time + 1) + rng.normal(size=n), decimals)
    return time, rng.random(n) < share, risk


def make_case(rng, n, *, decimals, share):
    """Concordance, and the likelihood of the Kaplan-Meier curve of times in bins of one unit."""
    time, event, risk = draw(rng, n, decimals=decimals, share=share)
    value, concordant, discordant, tied, _ = concordance_index_censored(event, time, risk)
    # Binned time 1 + k stands for bin k. The curve has its steps at the ends of bins.
    bin_id = np.minimum(time // 2, 3).astype(int)
    at, survival = kaplan_meier_estimator(event, bin_id + 1.0)
    curve = np.ones(5)
    for k in range(1, 5):
        curve[k] = survival[at <= k][-1] if (at <= k).any() else 1.0
    # An event in bin k has the probability of the step, censoring there that of the curve after.
    likelihood = np.where(event, curve[bin_id] - curve[bin_id + 1], curve[bin_id + 1])
    return {
        "time": time.tolist(),
        "event": event.tolist(),
        "risk": risk.tolist(),
        "concordance": float(value),
        "pairs": [int(concordant), int(discordant), int(tied)],
        "bin": bin_id.tolist(),
        "curve": curve[1:].tolist(),
        "loss": (-np.log(likelihood)).tolist(),
    }


def main():
    rng = np.random.default_rng(20260101)
    golden = {
        "version": metadata.version("scikit-survival"),
        "cases": [
            make_case(rng, 12, decimals=3, share=0.7),
            make_case(rng, 60, decimals=0, share=0.6),
            make_case(rng, 80, decimals=1, share=0.35),
        ],
    }
    path = pathlib.Path(__file__).with_name("sksurv.json")
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
