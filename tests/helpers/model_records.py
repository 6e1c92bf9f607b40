"""Records of several models with a planted order, for tests of analyses over models."""

import dataclasses

import numpy as np
from report_records import make_apd, make_clusters, make_margins, make_record

from pathorob_jax.results.over_models import INDEX
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import write_outcome, write_result

INDICES = {"one": 0.9, "two": 0.7, "three": 0.6, "four": 0.4, "five": 0.3, "six": 0.2}


def write_all(root, names=INDICES, *, datasets=("tiles", "more")):
    """Models whose drop is the larger the smaller their index; two on the front."""
    for model in names:
        index = INDICES[model]
        for dataset in datasets:
            apd = make_apd(model, dataset, drop=0.5 * (1 - index))
            accuracies = np.array(apd.id_accuracies)
            accuracies *= {"six": 0.9}.get(model, 0.6 + 0.1 * index) / accuracies[0].mean()
            apd = dataclasses.replace(
                apd,
                id_accuracies=accuracies.tolist(),
                id_accuracy_means=accuracies.mean(1).tolist(),
            )
            records = [
                apd,
                make_clusters(model, dataset, score=-index),
                make_margins(model, dataset, mari=index**2, croma=2 * index - 1),
            ]
            for record in records:
                write_result(str(root), record)
            draws = index + 0.02 * np.random.default_rng(len(model)).normal(size=200)
            outcome = Outcome(make_record(model, dataset, index), "key", {INDEX: draws})
            write_outcome(str(root), outcome)
