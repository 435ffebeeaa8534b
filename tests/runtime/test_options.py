"""Options: defaults, ranges, and messages that say what is allowed."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.options import GENERATE_RANGES, GenerateOptions, LoadOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", None),
        ("max_tokens", "9"),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 1.01),
        ("top_p", -0.01),
        ("top_k", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 0.5),
        ("max_crops", 0),
        ("max_objects", 0),
        ("stop", "word"),
        ("stop", ("",)),
        ("stop", (1,)),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=f"^{field} is .*must be") as caught:
        GenerateOptions(**{field: value})
    assert "\n" not in str(caught.value)


def test_values_at_the_ends_are_allowed() -> None:
    GenerateOptions(max_tokens=1, temperature=0, top_p=0, top_k=0, min_p=1, seed=0, max_crops=1, max_objects=1)
    GenerateOptions(top_p=1, seed=2**100, max_tokens=np.int64(3), temperature=np.float32(0.5), stop=("\n", "é"))  # type: ignore[arg-type]


def test_messages_say_what_is_allowed() -> None:
    with pytest.raises(InvalidOption, match="top_p is 7, but must be a number from 0 to 1"):
        GenerateOptions(top_p=7)
    with pytest.raises(InvalidOption, match="threads is 0, but must be a whole number from 1 to 1024"):
        LoadOptions(threads=0)
    with pytest.raises(InvalidOption, match="context is 0, but must be a whole number of at least 1"):
        LoadOptions(context=0)


def test_options_are_frozen_and_greedy_by_default() -> None:
    options = GenerateOptions()
    assert options.temperature == 0
    assert set(GENERATE_RANGES) < set(GenerateOptions.__dataclass_fields__)
    with pytest.raises(FrozenInstanceError):
        options.seed = 3  # type: ignore[misc]
