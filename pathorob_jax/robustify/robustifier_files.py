"""A robustifier on disk: ``state.safetensors`` holds its maps, ``robustifier.json`` the rest.

The JSON is written last and holds the digest of the state and its own, so that a folder is either
whole or refused.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from pathorob_jax.core import digests, files, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain, from_plain
from pathorob_jax.core.privacy import file_name
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.robustify import methods
from pathorob_jax.robustify.fit_table import FitTable
from pathorob_jax.robustify.robustifier import Robustifier, Target
from pathorob_jax.robustify.transform import CenterMaps

INFO, STATE = "robustifier.json", "state.safetensors"
SCHEMA_VERSION = 1
# What a robustifier changes; one without a kind, as first written, changes embeddings.
EMBEDDINGS, IMAGES = "embeddings", "images"
_TARGET = "target."
_PLAIN = ("method", "fit_on", "covariates", "reference", "rank", "centers", "classes", "half_of")


def describe_robustifier(robustifier: Robustifier) -> dict[str, Any]:
    """Everything about a robustifier, as ``robustifier.json`` holds it, but for versions.

    ``sha256`` covers all other keys and, by ``state_sha256``, the fitted numbers: two robustifiers
    of one ``sha256`` transform alike.
    """
    priors = robustifier.target.priors if robustifier.target else ()
    value = {
        "schema_version": SCHEMA_VERSION,
        **{name: as_plain(getattr(robustifier, name)) for name in _PLAIN},
        "n_maps": len(robustifier.maps),
        "target_priors": list(priors),
        "used_labels": robustifier.used_labels,
        "rows": {"source": file_name(robustifier.source), "sha256": robustifier.rows_sha256},
        "fit": as_plain(asdict(robustifier.table)),
        "state_sha256": digest_state(_state_of(robustifier)),
    }
    return value | {"sha256": digests.digest_json(value)}


def save_robustifier(robustifier: Robustifier, path: str) -> None:
    """Write a robustifier to the folder ``path``, over an older one.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(40) // 2, "patch_id": np.arange(40)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 20}
    >>> rows |= {"medical_center": ["A"] * 20 + ["B"] * 20}
    >>> x = np.random.default_rng(0).normal(size=(40, 8))
    >>> robustifier = pr.fit_robustifier(x, rows, method="combat")
    >>> pr.save_robustifier(robustifier, "combat")
    >>> pr.load_robustifier("combat")
    Robustifier(combat: fitted on 40 rows of 2 centres, fit_on=all)
    """
    write_folder(path, describe_robustifier(robustifier), _state_of(robustifier))


def load_robustifier(path: str) -> Robustifier:
    """Read the robustifier in the folder ``path``.

    Raises:
        FileNotFoundError: there is none.
        InputError: its files are damaged, of another schema, or it is one of images.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(40) // 2, "patch_id": np.arange(40)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 20}
    >>> rows |= {"medical_center": ["A"] * 20 + ["B"] * 20}
    >>> x = np.random.default_rng(0).normal(size=(40, 8))
    >>> pr.save_robustifier(pr.fit_robustifier(x, rows, method="identity"), "control")
    >>> control = pr.load_robustifier("control")
    >>> bool((control.transform(x, rows["medical_center"]) == x.astype("f4")).all())
    True
    """
    info, state = read_folder(path, kind=EMBEDDINGS)
    methods.get_method(info["method"])
    chosen = {name: info[name] for name in _PLAIN}
    chosen |= {"centers": tuple(info["centers"]), "classes": tuple(info["classes"])}
    maps = [
        CenterMaps(**{k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{i}.")})
        for i in range(info["n_maps"])
    ]
    target = None
    if f"{_TARGET}mean" in state:
        target = Target(
            state[f"{_TARGET}mean"], state.get(f"{_TARGET}sigma"), tuple(info["target_priors"])
        )
    return Robustifier(
        **chosen,
        maps=tuple(maps),
        target=target,
        table=from_plain(
            FitTable, info["fit"], where=f"{files.join(path, INFO)}: fit", stored=True
        ),
        rows_sha256=info["rows"]["sha256"],
        source=info["rows"]["source"],
    )


def _state_of(robustifier: Robustifier) -> dict[str, np.ndarray]:
    state = {
        f"{i}.{name}": np.ascontiguousarray(value)
        for i, maps in enumerate(robustifier.maps)
        for name, value in maps.as_arrays().items()
    }
    if robustifier.target is not None:
        state[f"{_TARGET}mean"] = robustifier.target.mean
        if robustifier.target.sigma is not None:
            state[f"{_TARGET}sigma"] = robustifier.target.sigma
    return state


def digest_state(state: dict[str, np.ndarray]) -> str:
    """Hex sha256 of the fitted numbers."""
    parts = [name.encode() + digests.digest_array(state[name]).encode() for name in sorted(state)]
    return digests.digest(*parts)


def write_folder(path: str, info: dict[str, Any], state: dict[str, np.ndarray]) -> None:
    """Write the two files of a robustifier, over those of an older one."""
    # Without its JSON a folder is no robustifier: never an old JSON beside a new state.
    files.remove(files.join(path, INFO))
    files.write_bytes(files.join(path, STATE), safetensors.numpy.save(state))
    sealed_files.write_json(files.join(path, INFO), info | {"versions": software_versions()})


def read_folder(path: str, *, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the two files of a robustifier that changes ``embeddings`` or ``images``.

    Raises:
        FileNotFoundError: there is none.
        InputError: they are damaged, of another schema, or of the other kind.
    """
    info_path, state_path = files.join(path, INFO), files.join(path, STATE)
    if not files.exists(info_path):
        raise FileNotFoundError(
            f"{path}: no robustifier (no {INFO}); make one with experiments.robustify."
        )
    mend = "Fit it again with experiments.robustify."
    try:
        info = sealed_files.read_json(info_path, schema_version=SCHEMA_VERSION)
    except InputError as error:
        raise InputError(f"{error} {mend}") from error
    found = info.get("kind", EMBEDDINGS)
    if found != kind:
        use = {
            IMAGES: "give it to experiments.extract as --stain, or to experiments.robustify with "
            "--tileset",
            EMBEDDINGS: "give it to experiments.robustify with --embeddings",
        }
        raise InputError(
            f"{path}: expected a robustifier of {kind}, found {info.get('method')}, which is one "
            f"of {found}; {use.get(found, 'fit another')}."
        )
    try:
        state = safetensors.numpy.load(files.read_bytes(state_path))
    except (safetensors.SafetensorError, *files.UNREADABLE) as error:
        raise InputError(
            f"{state_path}: cannot be read ({files.describe(error)}). {mend}"
        ) from error
    if digest_state(state) != info["state_sha256"]:
        raise InputError(f"{state_path}: is not the state of {INFO} (its digest). {mend}")
    return info, state
