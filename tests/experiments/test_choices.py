"""The words of flags are those of the library, which scripts do not import for them."""

from typing import get_args

from converters import tensor_sets
from experiments import choices
from pathorob_jax.data import manifest
from pathorob_jax.embeddings import export_formats
from pathorob_jax.evaluation import early_checks, settings
from pathorob_jax.kernels.logistic.fit import Stopping
from pathorob_jax.kernels.neighbors import search
from pathorob_jax.metrics import apd, clustering_score, slide_heads
from pathorob_jax.models import names, registry
from pathorob_jax.report import write
from pathorob_jax.results import export_results, pathorob_layout
from pathorob_jax.results.registry import KINDS
from pathorob_jax.robustify import methods, robustifier, stain, stain_fit
from pathorob_jax.runs import jobs, request, steps


def summaries(table):
    return {name: method.summary for name, method in table.items()}


def test_choices_are_those_of_the_library():
    assert tuple(KINDS) == choices.METRICS
    assert choices.RUN_MODELS == request.MODELS
    assert choices.RUN_DATASET == request.SYNTHETIC
    assert choices.RUN_METRICS == request.METRICS
    assert choices.RUN_SYNTHETIC_K == request.SYNTHETIC_K
    assert choices.RUN_STEPS == steps.KINDS
    assert choices.CLUSTERS == (jobs.LOCAL, jobs.SLURM)
    assert choices.KS == (settings.DEFAULT_K, settings.AUTO_K)
    assert early_checks.WORDS_OF_K == choices.KS
    assert choices.MIN_DRAWS == settings.MIN_DRAWS
    assert get_args(settings.DesignChoice) == choices.DESIGNS
    assert get_args(search.Precision) == choices.PRECISIONS
    assert settings.Settings.precision == choices.PRECISIONS[0]
    assert get_args(settings.SearchChoice) == choices.SEARCHES
    assert settings.Settings.search == choices.SEARCHES[0]
    assert choices.MIN_CELL_SIZE == settings.MIN_CELL_SIZE
    assert choices.BUDGET_MB * 2**20 == search.DEFAULT_BUDGET_BYTES
    assert get_args(Stopping) == choices.STOPPINGS
    assert settings.ApdSettings.stopping == choices.STOPPINGS[0]
    assert choices.HEADS == apd.OTHER_HEADS
    assert choices.CLUSTERING_METRICS == clustering_score.METRICS
    assert settings.ClusteringSettings.metric == choices.CLUSTERING_METRIC
    assert choices.PRESETS == registry.PRESETS
    assert [*names.CONTROLS, *names._entries()] == list(registry.MODELS)
    assert choices.SLIDE_PRESETS == slide_heads.PRESETS
    assert settings.SlideSettings.presets == choices.DEFAULT_SLIDE_PRESETS
    assert choices.COMPUTE_DTYPES == registry.COMPUTE_DTYPES == tensor_sets.DTYPES
    assert choices.PARAM_SHARDINGS == registry.PARAM_SHARDINGS
    assert summaries(methods.METHODS) == choices.METHODS
    assert summaries(stain.STAIN_METHODS) == choices.STAIN_METHODS
    assert pathorob_layout.FOLDERS == choices.LAYOUT_FOLDERS
    assert tuple(export_formats.FORMATS) == choices.EMBEDDING_FORMATS
    assert {*choices.RESULT_FORMATS, *choices.LAYOUTS} == set(export_results.FORMATS)
    assert choices.MAPS_AT == write.MAPS_AT
    assert choices.RANK == methods.DEFAULT_RANK
    assert choices.FIT_ON == robustifier.FIT_ON
    assert choices.UNSEEN == robustifier.UNSEEN
    assert choices.COVARIATES == robustifier.COVARIATES
    assert choices.COVARIATES[1] == manifest.CLASS
    assert choices.SCOPES == stain.SCOPES
    assert choices.TARGET == stain_fit.MEAN
