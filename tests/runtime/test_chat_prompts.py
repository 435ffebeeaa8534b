"""Prompts of models that chat: words before the image, ends of their own, tags, and boxes written as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from edgevlm_runtime.answer import Box
from edgevlm_runtime.manifest import PromptSpec, Template
from edgevlm_runtime.model import Model
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.prompts import Prompts, control_ids
from edgevlm_runtime.text_boxes import read_boxes
from edgevlm_runtime.tokenizer import TextTokenizer
from tests.runtime.fake_bundle import ANSWER, ASK, EOS, PROMPT, SPECIAL, make_model, make_tokenizer, write_bundle
from tests.runtime.fake_engine import TinyDecoder

BEFORE = (EOS, 30, 31)
CHAT = replace(
    PROMPT,
    before_image=BEFORE,
    image_attention="causal",
    stop_ids=(ASK,),
    stop_strings=("##",),
    text_query=Template(prefix=(EOS, 40), suffix=(41,)),
    tags=("[a]", "[b]"),
    tagged=Template(prefix=(50,), suffix=(51,)),
    suppressed_ids=(),
)
PREFIX = len(BEFORE) + 9  # the image's tokens are nine
SHORT = GenerateOptions(max_tokens=20)


def chat_model(root: Path, prompt: PromptSpec = CHAT) -> tuple[Model, TinyDecoder, TextTokenizer]:
    bundle = write_bundle(root, prompt)
    return *make_model(bundle), TextTokenizer(bundle.path("tokenizer.json"))


def say(text: str, model: Model, decoder: TinyDecoder, n_prompt: int) -> list[int]:
    """Script an answer after a prompt of that length, and give its ids."""
    ids = make_tokenizer().encode(text).ids
    decoder.script = {PREFIX + n_prompt - 1 + i: token for i, token in enumerate(ids)}
    return list(ids)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_the_prefix_is_what_stands_before_the_image_and_the_image(
    tmp_path: Path, photo: npt.NDArray[np.uint8], attention: Literal["causal", "bidirectional"]
) -> None:
    model, decoder, _ = chat_model(tmp_path, replace(CHAT, image_attention=attention))
    image = model.encode(photo)
    assert decoder.calls == [(0, PREFIX)]
    logits = model.next_token_logits(image, "how")
    prompt = Prompts(PROMPT, TextTokenizer(tmp_path / "tokenizer.json")).query("how").ids
    whole = np.concatenate((decoder.table[list(BEFORE)], image.embeddings, decoder.table[list(prompt)]))
    expected, _ = decoder.full(whole, PREFIX if attention == "bidirectional" else 0)
    np.testing.assert_allclose(logits, expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop", [EOS, ASK])
def test_any_of_the_stop_ids_ends_an_answer(tmp_path: Path, photo: npt.NDArray[np.uint8], stop: int) -> None:
    model, decoder, tokenizer = chat_model(tmp_path)
    n_prompt = len(Prompts(CHAT, tokenizer).query("how").ids)
    said = say("two", model, decoder, n_prompt)
    decoder.script[PREFIX + n_prompt - 1 + len(said)] = stop
    answer = model.query(photo, "how", SHORT)
    assert (answer.text, answer.finish_reason, list(answer.token_ids)) == ("two", "stop", said)


@pytest.mark.parametrize(("stop", "reason"), [((), "stop"), (("o",), "stop_string")])
def test_the_models_own_stop_string_is_its_way_to_end(
    tmp_path: Path, photo: npt.NDArray[np.uint8], stop: tuple[str, ...], reason: str
) -> None:
    model, decoder, tokenizer = chat_model(tmp_path)
    say("two## cups", model, decoder, len(Prompts(CHAT, tokenizer).query("how").ids))
    answer = model.query(photo, "how", replace(SHORT, stop=stop))
    assert (answer.text, answer.finish_reason) == ("tw" if stop else "two", reason)


def test_questions_without_an_image_and_with_a_tag_have_their_own_templates(tmp_path: Path) -> None:
    _, _, tokenizer = chat_model(tmp_path)
    prompts = Prompts(replace(CHAT, question_prefix=" "), tokenizer)
    assert prompts.query("how", image=False).ids == (EOS, 40, *tokenizer.encode("how"), 41)
    assert prompts.query("[b] how").ids == (50, *tokenizer.encode(" [b] how"), 51)
    assert prompts.query("[c] how").ids == (ASK, 22, *tokenizer.encode(" [c] how"), ANSWER, ANSWER)


def test_no_user_can_write_what_steers_such_a_model(tmp_path: Path) -> None:
    spec = replace(CHAT, before_image=(2,), stop_ids=(3,), text_query=Template(prefix=(4,), suffix=(5,)))
    assert {2, 3, 4, 5, 50, 51} <= set(control_ids(spec))
    write_bundle(tmp_path, spec)
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", control_ids(spec))
    assert not {2, 3, 4, 5} & set(tokenizer.encode("".join(SPECIAL)))


def test_detect_reads_boxes_from_text(tmp_path: Path, photo: npt.NDArray[np.uint8]) -> None:
    model, decoder, tokenizer = chat_model(tmp_path, replace(CHAT, boxes_in_text=100))
    assert CHAT.detect is not None
    n_prompt = len(Prompts(CHAT, tokenizer).locate(CHAT.detect, "cup").ids)
    said = say("cup{<10><20><30><40>}", model, decoder, n_prompt)
    decoder.script[PREFIX + n_prompt - 1 + len(said)] = EOS
    found = model.detect(photo, "cup", GenerateOptions(max_tokens=40))
    assert found.objects == (Box(x_min=0.1, y_min=0.2, x_max=0.3, y_max=0.4),)
    assert found.usage.completion_tokens == len(said)
    assert model.detect(photo, "cup", GenerateOptions(max_tokens=3)).objects == ()


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<p>a</p> {<0><0><100><100>}<delim>{<5><6><7><8>}", [(0, 0, 1, 1), (0.05, 0.06, 0.07, 0.08)]),
        ("{<30><40><10><20>}", [(0.1, 0.2, 0.3, 0.4)]),
        ("{ <1> <2> <3> <4> }", [(0.01, 0.02, 0.03, 0.04)]),
        ("{<1><2><3>} {<a><2><3><4>} <1><2><3><4> {<1><2><3><4>", []),
    ],
)
def test_boxes_of_a_text(text: str, boxes: list[tuple[float, float, float, float]]) -> None:
    found = [(box.x_min, box.y_min, box.x_max, box.y_max) for box in read_boxes(text, 100)]
    assert found == boxes
