"""Makes timm and torchvision importable where torch is a CPU build, and hands them out."""

import functools
import sys
from types import ModuleType

import pytest

_LIBRARIES = []  # torch forgets the declarations when the library object dies


@functools.cache
def import_torchvision() -> ModuleType:
    """torchvision; skips the test where torch or torchvision is not installed.

    A torchvision built for CUDA lacks its compiled operators beside a CPU torch, and stops at their
    names while it is imported. Declaring them is enough: no test here calls them.
    """
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor x) -> Tensor")
    _LIBRARIES.append(library)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return pytest.importorskip("torchvision")


@functools.cache
def import_timm() -> ModuleType:
    """timm; skips the test where it or torch is not installed."""
    import_torchvision()
    return pytest.importorskip("timm")
