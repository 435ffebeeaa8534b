"""The graph of a role that one part of a model plays by itself: one wrapper for the parts of every family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

_Part = TypeVar("_Part", bound=nn.Module)


class PartGraph(nn.Module):
    """One method of a part. Added under the part's name, its parameters are named as in the whole model."""

    def __init__(self, name: str, part: _Part, method: Callable[[_Part, Tensor], Tensor]) -> None:
        super().__init__()
        self.add_module(name, part)
        self.run = partial(method, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)
