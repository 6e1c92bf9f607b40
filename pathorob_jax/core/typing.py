"""Axis names and array types, used the same way in every signature and docstring.

Axis letters: ``N`` samples, ``Q`` queries, ``D`` embedding dimensions, ``K`` neighbours, ``B``
batch, ``T`` tokens, ``C`` biological classes, ``M`` medical centres, ``G`` points of a k grid.

Words: *embedding* (not feature or representation), *biological class* (``bio``), *medical centre*
(``center`` in code), *slide*, *patch* (one row of a manifest; a *tile* is its image). A pair of
samples is ``ss``, ``so``, ``os`` or ``oo``: same or other biological class first, same or other
medical centre second. Suffixes: ``n_x`` counts, ``x_idx`` positions in an array, ``x_id``
factorised categories, ``x_mask`` True = keep; units ``_s``, ``_bytes``, ``_px``.
"""

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, UInt8

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "UInt8"]
