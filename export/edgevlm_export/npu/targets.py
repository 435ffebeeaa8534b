"""The NPUs that graphs can be compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgevlm_runtime.errors import InvalidOption


@dataclass(frozen=True, kw_only=True)
class NpuTarget:
    """A kind of NPU. `engine` runs its graphs, `checked_on` is what the export checks them on.

    `htp_arch` is the version of a Hexagon, the first that its binaries run on.
    """

    name: str
    engine: Literal["qnn", "openvino"]
    chips: str
    checked_on: str
    htp_arch: int | None = None


def _hexagon(version: int, chips: str) -> NpuTarget:
    return NpuTarget(
        name=f"hexagon-v{version}",
        engine="qnn",
        chips=chips,
        checked_on="the Hexagon simulator",
        htp_arch=version,
    )


TARGETS = {
    target.name: target
    for target in (
        _hexagon(73, "Snapdragon 8 Gen 2, Snapdragon X"),
        _hexagon(75, "Snapdragon 8 Gen 3"),
        _hexagon(79, "Snapdragon 8 Elite"),
        _hexagon(81, "Snapdragon 8 Elite Gen 5, Snapdragon X2"),
        NpuTarget(name="intel", engine="openvino", chips="Intel Core Ultra", checked_on="OpenVINO's CPU device"),
    )
}


def find_target(name: str) -> NpuTarget:
    """The target of that name.

    Raises:
        InvalidOption: there is none.
    """
    if name not in TARGETS:
        raise InvalidOption(f"NPU target {name!r} is unknown; known: {', '.join(TARGETS)}")
    return TARGETS[name]
