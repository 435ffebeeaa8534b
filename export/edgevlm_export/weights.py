"""Between steps 1 and 2: a torch module's parameters by name, each read from the checkpoint when asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from torch import Tensor, nn

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_runtime.errors import CheckpointError

_SHOWN = 3


class Weights(Mapping[str, Tensor]):
    """Parameters by the module's own names; each access reads the tensor anew and nothing is kept."""

    def __init__(self, tensors: Mapping[str, LazyWeight]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        """The parameter as float32.

        Raises:
            CheckpointError: it is not of floating point, or its file is damaged.
        """
        return self.stored(name).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The parameter's shape, without reading it."""
        return self._tensors[name].shape

    def stored(self, name: str) -> Tensor:
        """The parameter in the checkpoint's own floating-point type, often a view of the mapped file.

        Raises:
            CheckpointError: it is not of floating point, or its file is damaged.
        """
        weight = self._tensors[name]
        tensor = weight.read()
        if not tensor.is_floating_point():
            raise CheckpointError(f"tensor {weight.origin}: is {tensor.dtype}, expected floating point")
        return tensor


def replace_parameters(module: nn.Module, make: Callable[[str, Tensor], Tensor], *, recurse: bool = True) -> None:
    """Put `make(name, parameter)` in each parameter's place, of the module's children too unless told otherwise."""
    for name, parameter in list(module.named_parameters(recurse=recurse)):
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(make(name, parameter), requires_grad=False))


def match_weights(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, LazyWeight],
    where: str,
    advice: str = "check the sizes in config.json",
) -> Weights:
    """Check found tensors, by the module's names, against the module's shapes. `advice` is for misshapen ones.

    Raises:
        CheckpointError: tensors are misshapen, missing or left over.
    """
    for name, shape in expected.items():
        if name in found and found[name].shape != shape:
            raise CheckpointError(
                f"{where}: tensor {found[name].origin} has shape {found[name].shape}, expected {shape}; {advice}"
            )
    missing = [name for name in expected if name not in found]
    extra = [weight.origin for name, weight in found.items() if name not in expected]
    problems = [
        f"{len(names)} {what} ({_first(names)})" for what, names in (("missing", missing), ("unknown", extra)) if names
    ]
    if problems:
        raise CheckpointError(f"{where}: tensors {' and '.join(problems)}; is it a checkpoint of another model?")
    return Weights({name: found[name] for name in expected})


def module_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module's parameters."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _first(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
