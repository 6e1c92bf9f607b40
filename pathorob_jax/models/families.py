"""The families of networks that a spec can name, and their common interface.

A family is a frozen configuration (a dataclass of numbers and strings, hence plain JSON) with a
``make`` method for its network. The ``network`` entry of a spec has the name of the family and the
fields of the configuration.
"""

from typing import Any, ClassVar, Protocol

from flax import nnx

from pathorob_jax.models.beit3 import Beit3Config
from pathorob_jax.models.clip import ClipConfig
from pathorob_jax.models.resnet import ResNetConfig
from pathorob_jax.models.swin import SwinConfig
from pathorob_jax.models.vit import POOLINGS, Pooling, ViTConfig


class NetworkConfig(Protocol):
    """Configuration of a network.

    ``make`` builds an ``nnx.Module`` that is called as ``network(images, dtype=..., stages=...)``
    on normalised float32[B, image_px, image_px, 3] and returns (``vit.Tokens``, named stages). A
    network without a class token leaves ``cls`` None. A network with a head (attention pool,
    projection) returns its embedding in ``head``, for the pooling of that name.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def image_px(self) -> int:
        """Side of the input."""
        ...

    def __hash__(self) -> int: ...

    def make(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """The network with random weights."""
        ...


POOLINGS_OF: dict[str, tuple[Pooling, ...]] = {
    "vit": POOLINGS,
    "clip": (*POOLINGS, "head"),
    "beit3": (*POOLINGS, "head"),
    "swin": ("mean",),
    "resnet": ("mean",),
}
FAMILIES: dict[str, type[NetworkConfig]] = {
    "vit": ViTConfig,
    "clip": ClipConfig,
    "beit3": Beit3Config,
    "swin": SwinConfig,
    "resnet": ResNetConfig,
}
