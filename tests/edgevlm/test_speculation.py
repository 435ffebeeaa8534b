"""The built-in model, whose 8 bits turn roundings into other integers: guesses change none of its answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import edgevlm
from edgevlm.home import BUILT_IN_PATH
from edgevlm_runtime.options import GenerateOptions
from training.drawing import draw
from training.scenes import scene

PLAIN = GenerateOptions(max_tokens=60)
N_SCENES = 6

pytestmark = pytest.mark.skipif(not (BUILT_IN_PATH / "manifest.json").is_file(), reason="nano is not built")


@pytest.fixture(scope="module")
def drafted() -> Iterator[edgevlm.Model]:
    """nano, for which nano guesses."""
    with edgevlm.load(draft="nano", threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def plain() -> Iterator[edgevlm.Model]:
    with edgevlm.load(threads=1) as model:
        yield model


def test_answers_about_scenes_are_the_plain_ones(plain: edgevlm.Model, drafted: edgevlm.Model) -> None:
    n_tokens = n_looked_up = n_drafted = 0
    for index in range(N_SCENES):
        picture = draw(scene("test", index), 448)
        image, seen_twice = plain.encode(picture), drafted.encode(picture)
        for length in ("short", "long"):
            answer = plain.caption(image, length, PLAIN)
            looked_up = plain.caption(image, length, GenerateOptions(max_tokens=60, lookup=4))
            guessed = drafted.caption(seen_twice, length, PLAIN)
            assert answer.token_ids == looked_up.token_ids == guessed.token_ids
            assert answer.usage.guessed_tokens == 0
            n_tokens += len(answer.token_ids)
            n_looked_up += looked_up.usage.accepted_tokens
            n_drafted += guessed.usage.accepted_tokens
    assert n_looked_up > 0
    assert n_drafted > 0.6 * n_tokens, "four guesses of five tokens"
