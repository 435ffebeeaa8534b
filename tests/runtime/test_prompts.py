"""Prompts: the templates of the manifest around a user's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.errors import DamagedBundle, InvalidOption, UnsupportedTask
from edgevlm_runtime.manifest import PromptSpec, Template
from edgevlm_runtime.prompts import Prompts, SpatialRef, control_ids
from edgevlm_runtime.tokenizer import TextTokenizer
from tests.runtime.fake_bundle import ANSWER, ASK, COORDINATE, EOS, PROMPT, SIZE, SPECIAL, THINK


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> TextTokenizer:
    return TextTokenizer(bundle.path("tokenizer.json"), control_ids(PROMPT))


@pytest.fixture(scope="module")
def prompts(text: TextTokenizer) -> Prompts:
    return Prompts(PROMPT, text)


def test_captions_are_whole_prompts(prompts: Prompts) -> None:
    assert prompts.caption("short").ids == (ASK, 20, ANSWER)
    with pytest.raises(InvalidOption, match="length is 'huge', but must be one of: short, normal"):
        prompts.caption("huge")


def test_a_question_is_put_between_prefix_and_suffix(prompts: Prompts, text: TextTokenizer) -> None:
    words = text.encode("how many?")
    assert prompts.query("how many?").ids == (ASK, 22, *words, ANSWER, ANSWER)
    assert prompts.query("how many?", image=False).ids == (EOS, ASK, 22, *words, ANSWER, ANSWER)
    assert prompts.query("how many?", reasoning=True).ids == (ASK, 22, *words, ANSWER, THINK)


def test_prefixes_of_words_are_written_before_them(text: TextTokenizer) -> None:
    spec = replace(PROMPT, question_prefix=" ", object_prefix="a ")
    assert Prompts(spec, text).query("cup").ids[2:-2] == text.encode(" cup")
    assert Prompts(spec, text).locate(Template(prefix=(9,), suffix=(8,)), "cup").ids == (9, *text.encode("a cup"), 8)


@pytest.mark.parametrize("name", ["", " \n"])
def test_an_object_needs_a_name(prompts: Prompts, name: str) -> None:
    with pytest.raises(InvalidOption, match="name is empty"):
        prompts.locate(Template(prefix=(1,), suffix=(2,)), name)


def test_references_come_before_the_question(prompts: Prompts, text: TextTokenizer) -> None:
    prompt = prompts.query("what?", [(0.25, 0.5), (0.1, 0.2, 0.5, 0.9), (0.0, 1.0)])
    places = (COORDINATE, COORDINATE, COORDINATE, COORDINATE, SIZE, COORDINATE, COORDINATE)
    assert prompt.ids == (ASK, 22, *places, *text.encode("what?"), ANSWER, ANSWER)
    at = dict(prompt.coordinates)
    assert at == pytest.approx({2: 0.25, 3: 0.5, 4: 0.3, 5: 0.55, 7: 0.0, 8: 1.0})
    ((position, size),) = prompt.sizes
    assert position == 6
    assert size == pytest.approx((0.4, 0.7))


@pytest.mark.parametrize(
    "ref", [(0.1,), (0.1, 0.2, 0.3), (120, 40), (0.1, float("nan")), (0.5, 0.1, 0.4, 0.9), (0.1, 0.9, 0.4, 0.5)]
)
def test_references_that_are_not_fractions_are_refused(prompts: Prompts, ref: SpatialRef) -> None:
    with pytest.raises(InvalidOption, match="spatial reference"):
        prompts.query("what?", [ref])


def test_what_a_model_has_no_ids_for_is_unsupported(text: TextTokenizer) -> None:
    bare = Prompts(PromptSpec(bos_id=0, eos_id=0, captions={}, query=PROMPT.query), text)
    with pytest.raises(UnsupportedTask, match="no spatial references"):
        bare.query("what?", [(0.1, 0.2)])
    with pytest.raises(UnsupportedTask, match="does not reason"):
        bare.query("what?", reasoning=True)
    with pytest.raises(InvalidOption, match="need an image"):
        bare.query("what?", [(0.1, 0.2)], image=False)


def test_placeholders_of_another_length_are_a_damaged_bundle(text: TextTokenizer) -> None:
    with pytest.raises(DamagedBundle, match="spatial_box"):
        Prompts(replace(PROMPT, spatial_box=(COORDINATE, SIZE)), text)


def test_every_token_that_steers_is_a_control_token() -> None:
    assert set(range(len(SPECIAL))) <= set(control_ids(PROMPT))
    assert {20, 21, 22, 23, 24} <= set(control_ids(PROMPT))


def test_a_prompt_can_not_be_injected(tmp_path: Path, bundle: Bundle, prompts: Prompts) -> None:
    prompt = prompts.query("".join(SPECIAL))
    steering = [token for token in prompt.ids if token < len(SPECIAL)]
    assert steering == [ASK, ANSWER, ANSWER]
