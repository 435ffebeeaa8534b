"""The built-in model without an image: what its questions begin with is read once, and its 8 bits change no token."""

from __future__ import annotations

import pytest

import edgevlm
from edgevlm.home import BUILT_IN_PATH
from edgevlm_runtime.decoder import Decoder
from edgevlm_runtime.options import GenerateOptions

QUESTIONS = ("What color is the circle?", "How many red hearts are there?", "Is there a star?", "What is in the image?")
OPTIONS = (GenerateOptions(max_tokens=40), GenerateOptions(max_tokens=40, lookup=4))

pytestmark = pytest.mark.skipif(not (BUILT_IN_PATH / "manifest.json").is_file(), reason="nano is not built")


def ask(model: edgevlm.Model) -> list[tuple[tuple[int, ...], int]]:
    """Tokens and the prompt's number of them, of each answer."""
    answers = [model.query(None, question, options) for question in QUESTIONS for options in OPTIONS]
    return [(answer.token_ids, answer.usage.prompt_tokens) for answer in answers]


def test_answers_are_those_to_prompts_that_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with edgevlm.load(threads=1) as model:
        found = ask(model)
        assert len(model._open_parts().prefixes._caches) == 1
        monkeypatch.setattr(Decoder, "continues_exactly", False)
        assert ask(model) == found


def test_a_draft_changes_no_answer() -> None:
    with edgevlm.load(threads=1) as plain, edgevlm.load(draft="nano", threads=1) as drafted:
        assert ask(drafted) == ask(plain)
        assert drafted.query(None, QUESTIONS[-1], OPTIONS[0]).usage.accepted_tokens > 0
