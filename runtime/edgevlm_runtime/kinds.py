"""The names of a manifest's tasks, graphs and types: all that a command needs that opens no bundle."""

from __future__ import annotations

from typing import Literal, TypeAlias

Task: TypeAlias = Literal["caption", "query", "detect", "point", "classify", "embed", "search"]
Role: TypeAlias = Literal[
    "vision",
    "project",
    "prefuse",
    "decoder",
    "region_coordinate_encoder",
    "region_coordinate_decoder",
    "region_size_encoder",
    "region_size_decoder",
    "classifier",
    "text",
]
Precision: TypeAlias = Literal["fp32", "fp16", "int8", "int4"]
CacheType: TypeAlias = Literal["float32", "float16", "int8"]

IMAGE_ROLES: tuple[Role, ...] = ("vision", "project")
"""The graphs from crops to the image tokens of a model that writes text."""
