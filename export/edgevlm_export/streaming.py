"""Run a torch module that is larger than memory: each layer's parameters are read before it runs and dropped after."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm_export.weights import replace_parameters


@contextmanager
def streamed(module: nn.Module, weights: Mapping[str, Tensor], *, unused: Collection[str] = ()) -> Iterator[None]:
    """Within this context a module on the meta device computes in float32 without ever holding all of its parameters.

    Layers without children (matrices, norms) are read when they are called. Parameters that a module with children
    holds itself (tables, position embeddings) are used without a call, so they stay for as long as the context.
    `weights` is asked for the module's own parameter names and should produce each tensor anew. Parameters named in
    `unused`, such as a large table that the call does not need, are not read.
    """
    handles = []
    owners = [(name, child) for name, child in module.named_modules() if list(child.parameters(recurse=False))]
    for name, owner in owners:
        load = _loader(name, weights, unused)
        if list(owner.children()):
            load(owner, ())
        else:
            handles += [owner.register_forward_pre_hook(load), owner.register_forward_hook(_unload)]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for _, owner in owners:
            _unload(owner)


def _loader(
    name: str, weights: Mapping[str, Tensor], unused: Collection[str]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    prefix = f"{name}." if name else ""

    def read(leaf: str, parameter: Tensor) -> Tensor:
        return parameter if prefix + leaf in unused else weights[prefix + leaf].float()

    def load(module: nn.Module, _: tuple[Any, ...]) -> None:
        replace_parameters(module, read, recurse=False)

    return load


def _unload(module: nn.Module, *_: Any) -> None:
    replace_parameters(module, lambda _, parameter: parameter.to("meta"), recurse=False)
