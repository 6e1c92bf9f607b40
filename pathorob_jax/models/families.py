"""The families of networks that a spec can name, and what all of them have in common.

A family is a frozen configuration (a dataclass of numbers and words, hence plain JSON) that makes
its network. A spec's ``network`` entry names the family and gives the configuration's fields.
"""

from typing import Any, ClassVar, Protocol

from flax import nnx

from pathorob_jax.models.beit3 import Beit3Config
from pathorob_jax.models.clip import ClipConfig
from pathorob_jax.models.resnet import ResNetConfig
from pathorob_jax.models.swin import SwinConfig
from pathorob_jax.models.vit import ViTConfig


class NetworkConfig(Protocol):
    """Configuration of a network.

    ``make`` builds an ``nnx.Module`` that is called as ``network(images, dtype=..., stages=...)``
    on normalised float32[B, image_px, image_px, 3] and returns (``vit.Tokens``, named stages). A
    network that has no class token leaves ``cls`` None; one with a head of its own (attention pool,
    projection) puts that embedding into ``head``, the pooling of that name.
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


FAMILIES: dict[str, type[NetworkConfig]] = {
    "vit": ViTConfig,
    "clip": ClipConfig,
    "beit3": Beit3Config,
    "swin": SwinConfig,
    "resnet": ResNetConfig,
}
