"""Answers against the same model without any cache, and the rules that end them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevlm_runtime.answer import Point
from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.errors import ContextOverflow
from edgevlm_runtime.model import Model
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.tokenizer import TextTokenizer
from tests.runtime.fake_bundle import (
    ANSWER,
    ASK,
    COORDINATE,
    EOS,
    GROUND,
    GROUND_END,
    SIZE,
    THINK,
    make_model,
)
from tests.runtime.fake_engine import CACHE, TinyDecoder
from tests.runtime.recompute import Recomputed, encode_coordinate, encode_size

Tiny = tuple[Model, TinyDecoder]
IMAGE = 10  # positions of the image: the first token and nine image tokens
NOTHING_MORE = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> TextTokenizer:
    return TextTokenizer(bundle.path("tokenizer.json"))


@pytest.fixture(scope="module")
def shared(bundle: Bundle, photo: npt.NDArray[np.uint8]) -> tuple[Model, TinyDecoder, EncodedImage]:
    model, decoder = make_model(bundle)
    return model, decoder, model.encode(photo)


@NOTHING_MORE
@given(question=st.text("how many red cups?é", max_size=12), max_tokens=st.integers(1, 30))
def test_an_answer_is_that_of_the_whole_sequence(
    shared: tuple[Model, TinyDecoder, EncodedImage], text: TextTokenizer, question: str, max_tokens: int
) -> None:
    model, decoder, image = shared
    answer = model.query(image, question, GenerateOptions(max_tokens=max_tokens))
    prompt = (ASK, 22, *text.encode(question), ANSWER, ANSWER)
    expected = Recomputed(decoder, image.embeddings).answer(prompt, max_tokens)
    assert list(answer.token_ids) == expected
    assert answer.text == text.decode(expected)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(expected)
    assert answer.usage.image_tokens == 9


@NOTHING_MORE
@given(question=st.text("how many red cups?é", max_size=12))
def test_a_question_without_an_image_starts_the_sequence(
    shared: tuple[Model, TinyDecoder, EncodedImage], text: TextTokenizer, question: str
) -> None:
    model, decoder, _ = shared
    answer = model.query(None, question, GenerateOptions(max_tokens=20))
    expected = Recomputed(decoder, None).answer((EOS, ASK, 22, *text.encode(question), ANSWER, ANSWER), 20)
    assert list(answer.token_ids) == expected
    assert answer.usage.image_tokens == 0


def test_captions(shared: tuple[Model, TinyDecoder, EncodedImage]) -> None:
    model, decoder, image = shared
    for length, token in (("short", 20), ("normal", 21)):
        answer = model.caption(image, length, GenerateOptions(max_tokens=12))
        assert list(answer.token_ids) == Recomputed(decoder, image.embeddings).answer((ASK, token, ANSWER), 12)


def test_references_are_embedded_as_their_coordinates_and_sizes(
    shared: tuple[Model, TinyDecoder, EncodedImage], text: TextTokenizer
) -> None:
    model, decoder, image = shared
    answer = model.query(image, "what?", GenerateOptions(max_tokens=1, logits=True), [(0.2, 0.3, 0.6, 0.9), (0.5, 0.1)])
    whole = Recomputed(decoder, image.embeddings)
    whole.append_ids((ASK, 22))
    for embedding in (
        encode_coordinate(0.4),
        encode_coordinate(0.6),
        encode_size(0.4, 0.6),
        encode_coordinate(0.5),
        encode_coordinate(0.1),
    ):
        whole.append(embedding)
    logits, _ = whole.append_ids((*text.encode("what?"), ANSWER, ANSWER))
    assert answer.first_logits is not None
    np.testing.assert_allclose(answer.first_logits, logits, rtol=0, atol=1e-4)


def scripted(decoder: TinyDecoder, start: int, ids: list[int]) -> None:
    """Force a sequence of tokens after the prompt's last position `start`."""
    decoder.script = {start + i: token for i, token in enumerate(ids)}


def last(text: TextTokenizer, question: str) -> int:
    """The position of a question's last prompt token after an image."""
    return IMAGE + 2 + len(text.encode(question)) + 2 - 1


def test_the_end_token_ends_and_is_not_part_of_the_answer(
    tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer
) -> None:
    model, decoder = tiny
    scripted(decoder, last(text, "a"), [*text.encode("two cups"), EOS])
    answer = model.query(photo, "a")
    assert (answer.text, answer.finish_reason) == ("two cups", "stop")
    assert answer.token_ids == text.encode("two cups")
    assert answer.first_logits is None
    assert answer.reasoning is None


def test_an_answer_may_be_empty(tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer) -> None:
    model, decoder = tiny
    scripted(decoder, last(text, "a"), [EOS])
    answer = model.query(photo, "a")
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "stop")
    assert answer.timings.tokens_per_second == 0
    assert list(model.stream(photo, "a")) == []


def test_max_tokens_ends_without_another_step(tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer) -> None:
    model, decoder = tiny
    scripted(decoder, last(text, "a"), [70, 71, 72, EOS])
    answer = model.query(photo, "a", GenerateOptions(max_tokens=3))
    assert (answer.token_ids, answer.finish_reason) == ((70, 71, 72), "length")
    assert len(decoder.calls) == 2 + 2  # image, prompt, two steps: the third token is not fed
    assert model.query(photo, "a", GenerateOptions(max_tokens=4)).finish_reason == "stop"


def test_the_first_token_may_be_one_that_is_suppressed_later(
    tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer
) -> None:
    model, decoder = tiny
    scripted(decoder, last(text, "a"), [ANSWER, ANSWER, 70, EOS])
    first, second, third = model.query(photo, "a").token_ids
    assert (first, third) == (ANSWER, 70)
    assert second != ANSWER


@pytest.mark.parametrize("stop", [("cups",), ("p", "cups"), ("wo cu",)])
def test_a_stop_string_ends_the_answer_before_it(
    tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer, stop: tuple[str, ...]
) -> None:
    model, decoder = tiny
    whole = "two cups and a box"
    scripted(decoder, last(text, "a"), [*text.encode(whole), EOS])
    options = GenerateOptions(stop=stop)
    answer = model.query(photo, "a", options)
    expected = whole[: whole.index(min(stop, key=lambda word: whole.index(word) + len(word)))]
    assert (answer.text, answer.finish_reason) == (expected, "stop_string")
    assert "".join(model.stream(photo, "a", options)) == expected
    assert len(answer.token_ids) < len(text.encode(whole))


def test_text_that_only_begins_like_a_stop_string_is_kept(
    tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer
) -> None:
    model, decoder = tiny
    scripted(decoder, last(text, "a"), [*text.encode("two cu"), EOS])
    answer = model.query(photo, "a", GenerateOptions(stop=("cups",)))
    assert (answer.text, answer.finish_reason) == ("two cu", "stop")


def test_a_full_context_ends_an_answer(tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer) -> None:
    model, decoder = tiny
    decoder.script = dict.fromkeys(range(CACHE.max_context), 70)
    answer = model.query(photo, "a")
    prompt = last(text, "a") + 1
    assert answer.finish_reason == "length"
    # Every position is used, and the last token needs none.
    assert len(answer.token_ids) == CACHE.max_context - prompt + 1


def test_a_prompt_may_fill_the_context_but_not_exceed_it(
    tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer
) -> None:
    model, decoder = tiny
    room = CACHE.max_context - IMAGE - 4
    fits = "z" * room
    assert len(text.encode(fits)) == room
    image = model.encode(photo)
    answer = model.query(image, fits)
    assert len(answer.token_ids) <= 1
    n_calls = len(decoder.calls)
    with pytest.raises(ContextOverflow, match=r"takes 55 tokens, but only 54 of the model's 64 positions"):
        model.query(image, fits + "z")
    assert len(decoder.calls) == n_calls
    assert model.query(image, fits).token_ids == answer.token_ids


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_writes_the_same(tiny: Tiny, photo: npt.NDArray[np.uint8], seed: int) -> None:
    model, _ = tiny
    options = GenerateOptions(temperature=8, top_p=0.9, seed=seed, max_tokens=20)
    first = model.query(photo, "how many", options)
    assert model.query(photo, "how many", options).token_ids == first.token_ids
    assert model.query(photo, "how many", replace(options, seed=seed + 7)).token_ids != first.token_ids


def test_next_token_logits_are_those_of_the_question(
    shared: tuple[Model, TinyDecoder, EncodedImage], text: TextTokenizer
) -> None:
    model, decoder, image = shared
    logits = model.next_token_logits(image, "red?")
    expected, _ = Recomputed(decoder, image.embeddings).append_ids((ASK, 22, *text.encode("red?"), ANSWER, ANSWER))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    answer = model.query(image, "red?", GenerateOptions(logits=True, max_tokens=3))
    np.testing.assert_array_equal(answer.first_logits, logits)


THOUGHT = [30, 31, GROUND, 32, 33, COORDINATE, COORDINATE, COORDINATE, COORDINATE, COORDINATE, GROUND_END, 34]


def test_reasoning_is_that_of_the_whole_sequence(tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer) -> None:
    model, decoder = tiny
    image = model.encode(photo)
    scripted(decoder, last(text, "a"), [*THOUGHT, ANSWER])
    answer = model.query(image, "a", GenerateOptions(reasoning=True, max_tokens=14))
    whole = Recomputed(decoder, image.embeddings)
    texts, coordinates = whole.reason((ASK, 22, *text.encode("a"), ANSWER, THINK), 14)
    assert [len(chunk) for chunk in texts] == [2, 8, 2]
    assert list(answer.token_ids) == whole.answer((ANSWER,), 14)
    assert answer.reasoning is not None
    written = [text.decode(chunk) for chunk in texts]
    assert answer.reasoning.text == "".join(written)
    (grounding,) = answer.reasoning.grounding
    assert answer.reasoning.text[grounding.start : grounding.end] == written[1]
    x0, y0, x1, y1, _ = coordinates[1]  # the fifth has no partner
    assert grounding.points == (Point(x=x0, y=y0), Point(x=x1, y=y1))
    assert answer.usage.completion_tokens == len(THOUGHT) + len(answer.token_ids)


def test_tokens_suppressed_while_thinking(tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer) -> None:
    model, decoder = tiny
    scripted(decoder, last(text, "a"), [30, EOS, SIZE, 31, ANSWER])
    image = model.encode(photo)
    answer = model.query(image, "a", GenerateOptions(reasoning=True, max_tokens=9))
    texts, _ = Recomputed(decoder, image.embeddings).reason((ASK, 22, *text.encode("a"), ANSWER, THINK), 9)
    assert not {EOS, SIZE} & set(texts[0])
    assert answer.reasoning is not None
    assert answer.reasoning.text == "".join(text.decode(chunk) for chunk in texts)


@pytest.mark.parametrize("max_tokens", [1, 4, 6])
def test_thinking_that_is_cut_off_still_answers(
    tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer, max_tokens: int
) -> None:
    model, decoder = tiny
    image = model.encode(photo)
    scripted(decoder, last(text, "a"), THOUGHT)
    answer = model.query(image, "a", GenerateOptions(reasoning=True, max_tokens=max_tokens))
    whole = Recomputed(decoder, image.embeddings)
    texts, _ = whole.reason((ASK, 22, *text.encode("a"), ANSWER, THINK), max_tokens)
    assert sum(map(len, texts)) == max_tokens
    assert list(answer.token_ids) == whole.answer((ANSWER,), max_tokens)


def test_thinking_leaves_room_for_an_answer(tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer) -> None:
    model, decoder = tiny
    decoder.script = dict.fromkeys(range(CACHE.max_context), 70)
    answer = model.query(photo, "a", GenerateOptions(reasoning=True))
    assert (answer.token_ids, answer.finish_reason) == ((70, 70), "length")
    with pytest.raises(ContextOverflow):
        model.query(photo, "z" * (CACHE.max_context - IMAGE - 4), GenerateOptions(reasoning=True))


def test_a_coordinate_may_be_the_first_thought(tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer) -> None:
    model, decoder = tiny
    image = model.encode(photo)
    scripted(decoder, last(text, "a"), [COORDINATE, COORDINATE, ANSWER])
    answer = model.query(image, "a", GenerateOptions(reasoning=True, max_tokens=5))
    whole = Recomputed(decoder, image.embeddings)
    _, ((x, y),) = whole.reason((ASK, 22, *text.encode("a"), ANSWER, THINK), 5)
    assert answer.reasoning is not None
    assert answer.reasoning.text == ""
    assert [grounding.points for grounding in answer.reasoning.grounding] == [(Point(x=x, y=y),)]
