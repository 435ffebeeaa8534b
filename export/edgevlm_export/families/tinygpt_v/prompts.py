"""How TinyGPT-V is asked: every format that it was trained or measured with, as token ids.

Its text is tokenized in two pieces, before the image and after it. A piece is cut only before a word with its space
and before END, where Phi-2's tokenizer cuts as well: ids are those of the whole piece, unless a question ends in a
space or in #.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tokenizers import Tokenizer

from edgevlm_export.families.tinygpt_v.files import LARGE_STAGE
from edgevlm_runtime.errors import CheckpointError, InvalidOption
from edgevlm_runtime.manifest import PromptSpec, SamplingSpec, Template

END = "###"
"""Ends what a speaker says; one token of Phi-2's tokenizer."""
GRID = 100
"""Boxes are written in steps of 1 / GRID."""
END_OF_TEXT = "<|endoftext|>"
_TAGS = ("[vqa]", "[caption]", "[refer]", "[identify]", "[grounding]", "[detection]")
_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions.###"
)
_SHORT_ANSWER = " [vqa] Based on the image, respond to this question with a short answer:"
_CAPTIONS = {"short": " Briefly describe this image.", "normal": " Describe this image in detail."}

_Ids: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Style:
    """What stands before an image, and after a question about it.

    `question` comes between the image and a question without a tag; `tagged`: captions and objects are asked with tags.
    """

    name: str
    before: str
    after: str
    question: str = ""
    tagged: bool = False
    sampling: SamplingSpec


_GREEDY = SamplingSpec(max_tokens=20, temperature=0.0, top_p=1.0)
_CHAT = SamplingSpec(max_tokens=300, temperature=1.0, top_p=0.9)
_DEMO = SamplingSpec(max_tokens=500, temperature=0.6, top_p=0.9)

_ALL = (
    # Stage 4 as it was measured, as it was trained, and as its demonstration asks.
    Style(
        name="benchmark",
        before="###Human:",
        after="###Assistant: ",
        question=_SHORT_ANSWER,
        tagged=True,
        sampling=_GREEDY,
    ),
    Style(name="inst", before="[INST]", after=" [/INST]", question=" [vqa]", tagged=True, sampling=_DEMO),
    Style(name="demo", before="<s>[INST]", after=" [/INST]", question=" [vqa]", tagged=True, sampling=_DEMO),
    # Stages 1 to 3 as their demonstration asks, and as stage 3 was trained.
    Style(name="chat", before=f"{_SYSTEM}Human:", after="###Assistant: ", sampling=_CHAT),
    Style(name="alignment", before="###Human:", after=" ###Assistant: ", sampling=_CHAT),
)
STYLES = {style.name: style for style in _ALL}
"""Formats by name. Those of stage 4, which knows tags, do not suit the others."""


def find_style(name: str | None, stage: int) -> Style:
    """A stage's format of that name; its first where None.

    Raises:
        InvalidOption: the stage knows none of that name.
    """
    known = [style.name for style in _ALL if style.tagged == (stage == LARGE_STAGE)]
    if name is not None and name not in known:
        raise InvalidOption(f"--prompts {name}: stage {stage} knows {', '.join(known)}")
    return STYLES[name or known[0]]


def make_prompts(style: Style, tokenizer: Tokenizer, path: Path) -> PromptSpec:
    """The manifest's prompts; `path` is the tokenizer's, for messages.

    Raises:
        CheckpointError: the tokenizer is not Phi-2's.
    """
    stop, end_of_text = (_token(tokenizer, token, path) for token in (END, END_OF_TEXT))

    def encode(text: str) -> _Ids:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    after = encode(style.after)
    plain = Template(prefix=encode("</Img>"), suffix=after)
    return PromptSpec(
        bos_id=end_of_text,
        eos_id=stop,
        captions=_captions(style, encode),
        query=Template(prefix=encode(f"</Img>{style.question}"), suffix=after),
        detect=_detect(style, encode),
        object_prefix=" ",
        question_prefix=" ",
        before_image=encode(f"{style.before} <Img>"),
        image_attention="causal",
        stop_ids=(end_of_text,),
        stop_strings=(END, "</s>"),
        text_query=Template(prefix=encode(f"{style.before} "), suffix=after),
        tags=_TAGS if style.tagged else (),
        tagged=plain if style.tagged else None,
        boxes_in_text=GRID if style.tagged else None,
    )


def _captions(style: Style, encode: Callable[[str], _Ids]) -> dict[str, _Ids]:
    tag = " [caption]" if style.tagged else ""
    return {length: encode(f"</Img>{tag}{words}{style.after}") for length, words in _CAPTIONS.items()}


def _detect(style: Style, encode: Callable[[str], _Ids]) -> Template | None:
    if not style.tagged:
        return None
    return Template(prefix=encode("</Img> [refer] give me the location of"), suffix=encode(style.after))


def _token(tokenizer: Tokenizer, text: str, path: Path) -> int:
    token: int | None = tokenizer.token_to_id(text)
    if token is None:
        raise CheckpointError(f"{path}: has no token {text!r}; give Phi-2's tokenizer.json with --tokenizer FILE")
    return token
