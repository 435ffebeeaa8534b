"""What is asked, as the published formats write it; token ids are those of the whole text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edgevlm_export.families.tinygpt_v.prompts import STYLES, make_prompts
from edgevlm_export.families.tinygpt_v.random_weights import make_tokenizer
from edgevlm_runtime.manifest import PromptSpec
from edgevlm_runtime.prompts import Prompts, before_image
from edgevlm_runtime.tokenizer import TextTokenizer

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions.###"
)
SHORT = "Based on the image, respond to this question with a short answer:"
QUESTION = "What is this?"
# Each format and what it makes of the question, as in the publication's own code.
EXPECTED = {
    "benchmark": f"###Human: <Img><ImageHere></Img> [vqa] {SHORT} {QUESTION}###Assistant: ",
    "inst": f"[INST] <Img><ImageHere></Img> [vqa] {QUESTION} [/INST]",
    "demo": f"<s>[INST] <Img><ImageHere></Img> [vqa] {QUESTION} [/INST]",
    "chat": f"{SYSTEM}Human: <Img><ImageHere></Img> {QUESTION}###Assistant: ",
    "alignment": f"###Human: <Img><ImageHere></Img> {QUESTION} ###Assistant: ",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(512).save(str(file))
    return file


def asking(style: str, path: Path) -> tuple[PromptSpec, Prompts]:
    spec = make_prompts(STYLES[style], Tokenizer.from_file(str(path)), path)
    return spec, Prompts(spec, TextTokenizer(path))


def whole(path: Path, text: str) -> list[int]:
    """The two pieces around the image, each tokenized at once."""
    tokenizer = Tokenizer.from_file(str(path))
    return [token for part in text.split("<ImageHere>") for token in tokenizer.encode(part).ids]


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_question_in_each_format(style: str, path: Path) -> None:
    spec, prompts = asking(style, path)
    assert spec.image_attention == "causal"
    assert [*before_image(spec), *prompts.query(QUESTION).ids] == whole(path, EXPECTED[style])


@pytest.mark.parametrize("question", ["[caption] in short", "[grounding] describe", "[identify] {<1><2><30><40>}"])
def test_tags_take_the_place_of_the_question_for_a_short_answer(question: str, path: Path) -> None:
    spec, prompts = asking("benchmark", path)
    expected = whole(path, f"###Human: <Img><ImageHere></Img> {question}###Assistant: ")
    assert [*before_image(spec), *prompts.query(question).ids] == expected


def test_captions_and_objects_are_asked_with_tags(path: Path) -> None:
    spec, prompts = asking("benchmark", path)
    assert spec.detect is not None and spec.boxes_in_text == 100
    decode = TextTokenizer(path).decode
    assert decode(prompts.caption("normal").ids) == "</Img> [caption] Describe this image in detail.###Assistant: "
    assert decode(prompts.locate(spec.detect, "cup").ids) == "</Img> [refer] give me the location of cup###Assistant: "


def test_stages_without_tags(path: Path) -> None:
    spec, prompts = asking("chat", path)
    assert spec.detect is None and spec.boxes_in_text is None and not spec.tags
    assert TextTokenizer(path).decode(prompts.caption("short").ids).startswith("</Img> Briefly describe")


def test_answers_end_at_the_next_speaker(path: Path) -> None:
    spec, _ = asking("inst", path)
    tokenizer = Tokenizer.from_file(str(path))
    assert tokenizer.encode("###").ids == [spec.eos_id]
    assert spec.stop_ids == (tokenizer.token_to_id("<|endoftext|>"),) and "###" in spec.stop_strings
