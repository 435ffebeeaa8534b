"""EdgeVLM: small vision-language models on CPUs and NPUs.

    import edgevlm

    model = edgevlm.load("nano")
    image = model.encode("photo.jpg")
    for piece in model.stream(image, "what is this?"):
        ...

    edgevlm.load("fastvit_t8").classify("cat.jpg", top_k=3).labels

Names are looked up when they are first used, so that importing the package, or `edgevlm --help`, loads no engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevlm.home import load
    from edgevlm_runtime.answer import Answer, Box, Point
    from edgevlm_runtime.encoded import EncodedImage
    from edgevlm_runtime.errors import EdgeVLMError
    from edgevlm_runtime.labels import Classification, Label
    from edgevlm_runtime.model import Model
    from edgevlm_runtime.options import GenerateOptions
    from edgevlm_runtime.search import SearchResult

__all__ = [
    "Answer",
    "Box",
    "Classification",
    "EdgeVLMError",
    "EncodedImage",
    "GenerateOptions",
    "Label",
    "Model",
    "Point",
    "SearchResult",
    "load",
]
__version__ = "0.1.0"

_HOMES = {
    "Answer": "edgevlm_runtime.answer",
    "Box": "edgevlm_runtime.answer",
    "Classification": "edgevlm_runtime.labels",
    "EdgeVLMError": "edgevlm_runtime.errors",
    "EncodedImage": "edgevlm_runtime.encoded",
    "GenerateOptions": "edgevlm_runtime.options",
    "Label": "edgevlm_runtime.labels",
    "Model": "edgevlm_runtime.model",
    "Point": "edgevlm_runtime.answer",
    "SearchResult": "edgevlm_runtime.search",
    "load": "edgevlm.home",
}


def __getattr__(name: str) -> object:
    """Import a public name from the module where it lives (PEP 562).

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'edgevlm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, whether loaded yet or not."""
    return sorted([*__all__, "__version__"])
