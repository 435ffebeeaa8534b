"""What text-only questions begin with is read once: tokens as without it, threads, drafts, contexts, what is freed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.errors import ContextOverflow
from edgevlm_runtime.manifest import Template
from edgevlm_runtime.model import Model
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.prompts import Prompts
from edgevlm_runtime.tokenizer import TextTokenizer
from tests.runtime.fake_bundle import ANSWER, ASK, EOS, PROMPT, make_model, write_bundle
from tests.runtime.fake_engine import CACHE, FakeEngine, TinyDecoder

Tiny = tuple[Model, TinyDecoder]
Asked = tuple[Model, TinyDecoder, tuple[int, ...]]
SHORT = GenerateOptions(max_tokens=8)
PREFIX = (EOS, ASK, 22)  # of a question, and of one to think about
WORDS = (EOS, 40, 41, 42, 43)
SYSTEM = replace(PROMPT, text_query=Template(prefix=WORDS, suffix=(ANSWER,)))
QUESTIONS = ("how many", "where is the box?", "two red cups")


def recomputed(model: Model, decoder: TinyDecoder, question: str, n_tokens: int) -> list[int]:
    """The answer of a decoder that has no cache and reads the whole sequence for each token."""
    ids = list(model._open_parts().prompts.query(question, image=False).ids)
    answer: list[int] = []
    while len(answer) < n_tokens:
        logits = decoder.full(decoder.table[[*ids, *answer]], 0)[0][-1]
        if answer:
            logits[list(model._open_parts().spec.suppressed_ids)] = -np.inf
        answer.append(int(np.argmax(logits)))
    return answer


@pytest.fixture(params=[(PROMPT, PREFIX), (SYSTEM, WORDS)], ids=["bos and template", "a system's words"])
def asked(request: pytest.FixtureRequest, tmp_path: Path) -> Asked:
    """A model, its decoder, and the prefix of its questions."""
    spec, prefix = request.param
    return *make_model(write_bundle(tmp_path, spec)), prefix


def test_answers_are_those_of_a_decoder_without_a_cache(asked: Asked) -> None:
    model, decoder, _ = asked
    for question in (*QUESTIONS, QUESTIONS[0]):
        answer = model.query(None, question, SHORT)
        assert list(answer.token_ids) == recomputed(model, decoder, question, len(answer.token_ids)) != []


def test_a_prefix_is_read_once_and_counts_for_every_question(asked: Asked) -> None:
    model, decoder, prefix = asked
    assert decoder.calls == [], "not before it is needed"
    for question in QUESTIONS:
        n_prompt = len(model._open_parts().prompts.query(question, image=False).ids)
        decoder.calls.clear()
        answer = model.query(None, question, SHORT)
        reading = [(0, len(prefix))] if question == QUESTIONS[0] else []
        assert decoder.calls[: len(reading) + 1] == [*reading, (len(prefix), n_prompt - len(prefix))]
        assert len(decoder.calls) == len(reading) + len(answer.token_ids)
        assert answer.usage.prompt_tokens == n_prompt and answer.usage.image_tokens == 0


def test_the_time_of_reading_a_prefix_is_the_first_questions(bundle: Bundle) -> None:
    decoder = TinyDecoder(320)
    decoder.on_run = lambda: time.sleep(0.3) if not decoder.calls else None
    model = Model(bundle, FakeEngine(decoder))
    first, second = (model.query(None, "how many", SHORT).timings.prefill_ms for _ in range(2))
    assert first >= 300 > second


def test_a_question_about_an_image_neither_reads_nor_needs_one(tiny: Tiny, photo: npt.NDArray[np.uint8]) -> None:
    model, decoder = tiny
    expected = model.query(photo, "how many", SHORT).token_ids
    assert all(call != (0, len(PREFIX)) for call in decoder.calls)
    model.query(None, "how many", SHORT)
    assert model.query(photo, "how many", SHORT).token_ids == expected


def test_templates_have_prefixes_of_their_own(tmp_path: Path) -> None:
    model, decoder = make_model(write_bundle(tmp_path, SYSTEM))
    decoder.script = dict.fromkeys(range(64), 70)
    thinking = replace(SHORT, reasoning=True)
    answers = [model.query(None, "how many", options) for options in (SHORT, thinking) * 2]
    assert decoder.calls.count((0, len(WORDS))) == decoder.calls.count((0, len(PREFIX))) == 1
    assert answers[0] != answers[1] and answers[1].reasoning == answers[3].reasoning is not None
    assert [answer.token_ids for answer in answers[:2]] == [answer.token_ids for answer in answers[2:]]


def test_the_prefix_ends_before_the_words_and_leaves_something_to_run(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    text = TextTokenizer(tmp_path / "tokenizer.json")
    assert Prompts(PROMPT, text).query("how", image=False).prefix == PREFIX
    assert Prompts(PROMPT, text).query("how", image=False, reasoning=True).prefix == PREFIX
    assert Prompts(PROMPT, text).query("how").prefix == Prompts(PROMPT, text).caption("short").prefix == ()
    assert Prompts(SYSTEM, text).query("how", image=False).prefix == WORDS
    bare = replace(SYSTEM, text_query=Template(prefix=(EOS, 40), suffix=()))
    assert Prompts(bare, text).query("", image=False).prefix == (EOS,)


def test_threads_share_a_prefix(tiny: Tiny) -> None:
    model, decoder = tiny
    expected = [recomputed(model, decoder, question, 8) for question in QUESTIONS]
    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:

        def ask(index: int) -> list[int]:
            barrier.wait(timeout=60)
            return list(model.query(None, QUESTIONS[index], SHORT).token_ids)

        found = list(pool.map(ask, [0, 1, 2] * 8))
    assert found == expected * 8
    assert decoder.calls.count((0, len(PREFIX))) == 1


def test_an_open_stream_and_a_failure_leave_the_prefix_as_it_was(tiny: Tiny) -> None:
    model, decoder = tiny
    expected = [model.query(None, question, SHORT).token_ids for question in QUESTIONS]
    stream = model.stream(None, QUESTIONS[0], SHORT)
    next(stream)
    assert model.query(None, QUESTIONS[1], SHORT).token_ids == expected[1]
    assert stream.finish().token_ids == expected[0]
    decoder.fail_at = 12
    with pytest.raises(MemoryError):
        model.query(None, QUESTIONS[1], SHORT)
    decoder.fail_at = None
    assert [model.query(None, question, SHORT).token_ids for question in QUESTIONS] == expected


def test_a_prefix_that_failed_is_read_again(bundle: Bundle) -> None:
    model, decoder = make_model(bundle)
    expected = model.query(None, "how many", SHORT).token_ids
    model, decoder = make_model(bundle)
    decoder.fail_at = 2
    with pytest.raises(MemoryError):
        model.query(None, "how many", SHORT)
    decoder.fail_at = None
    assert model.query(None, "how many", SHORT).token_ids == expected


@pytest.mark.parametrize("context", [2, 6])  # less than the prefix, and than the prompt
def test_a_prompt_that_does_not_fit_counts_as_a_whole(bundle: Bundle, context: int) -> None:
    decoder = TinyDecoder(320)
    model = Model(bundle, FakeEngine(decoder), context=context)
    n_prompt = len(model._open_parts().prompts.query("how many cups?", image=False).ids)
    with pytest.raises(ContextOverflow, match=f"takes {n_prompt} tokens, but only {context} of"):
        model.query(None, "how many cups?", SHORT)
    assert decoder.calls == []


def test_an_answer_ends_where_the_context_does(tiny: Tiny) -> None:
    model, decoder = tiny
    decoder.script = dict.fromkeys(range(64), 70)
    usage = model.query(None, "how many").usage
    assert usage.prompt_tokens + usage.completion_tokens == CACHE.max_context + 1  # the last is not read anymore


def test_guesses_go_on_from_prefixes(bundle: Bundle) -> None:
    """A draft's own is read once too; of a draft with too small a context none is, and nothing is guessed."""
    script = {position: 70 + position % 5 for position in range(64)}
    decoder, drafts = TinyDecoder(320, script), TinyDecoder(320, script)
    expected = make_model(bundle, script)[0].query(None, "how many", GenerateOptions(max_tokens=20)).token_ids
    model = Model(bundle, FakeEngine(decoder), open_draft=lambda: Model(bundle, FakeEngine(drafts)))
    for lookup in (0, 4):
        answer = model.query(None, "how many", GenerateOptions(max_tokens=20, lookup=lookup))
        assert answer.token_ids == expected
        assert answer.usage.accepted_tokens > 10
    for each in (decoder, drafts):
        assert each.calls.count((0, len(PREFIX))) == 1
    small = Model(bundle, FakeEngine(decoder), open_draft=lambda: Model(bundle, FakeEngine(drafts), context=2))
    answer = small.query(None, "how many", GenerateOptions(max_tokens=20))
    assert answer.token_ids == expected and answer.usage.guessed_tokens == 0


def test_closing_a_model_frees_its_prefixes(tiny: Tiny) -> None:
    model, _ = tiny
    model.query(None, "how many", SHORT)
    (kept,) = model._open_parts().prefixes._caches.values()
    assert kept.length == len(PREFIX), "nothing of the answer"
    watched = weakref.ref(kept)
    del kept
    model.close()
    gc.collect()
    assert watched() is None
