"""torchvision beside a torch of another build (PyPI's torchvision and the CPU build of torch) can not be imported.

Its Python side describes operators that its compiled side could not register. Nothing here calls them, so that
declaring them is enough for `import torchvision`, and hence for `import timm`.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def declare_missing_operators() -> None:
    """Make `import torchvision` possible in this process; nothing to do where the builds match or it is absent."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or _loads(Path(spec.submodule_search_locations[0])):
        return
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)


def _loads(folder: Path) -> bool:
    """Whether torchvision's compiled side works with this torch."""
    try:
        for library in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
            torch.ops.load_library(library)
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, _OPERATORS[0])
