"""Boxes that a model writes as text: {<x1><y1><x2><y2>}, each a step of a grid over the image."""

from __future__ import annotations

import re

from edgevlm_runtime.answer import Box

_BOX = re.compile(r"\{\s*" + r"\s*".join([r"<(\d{1,6})>"] * 4) + r"\s*\}")


def read_boxes(text: str, n_steps: int) -> tuple[Box, ...]:
    """The boxes of a text in its order; a step is 1 / n_steps of the image's width or height.

    Corners that are the wrong way round are swapped, and what is not a whole box is passed over.
    """
    boxes = []
    for found in _BOX.finditer(text):
        x1, y1, x2, y2 = (int(step) / n_steps for step in found.groups())
        boxes.append(Box(x_min=min(x1, x2), y_min=min(y1, y2), x_max=max(x1, x2), y_max=max(y1, y2)))
    return tuple(boxes)
