"""The Llama 3 chat that LLaVA-Mini was trained in: from a chat template to the ids around a question.

As in the published code each side of the image is tokenized by itself: the template's own start of the text follows the
one that the tokenizer adds, so that a prompt begins with two. The template ends with the question; the header of the
answer, which the model would have to write first, is added here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from edgevlm_export.checkpoint import read_json
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import PromptSpec, SamplingSpec, Template

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
CAPTIONS: Mapping[str, str] = {
    "short": "Provide a one-sentence caption for the provided image.",
    "normal": "Describe the image concisely.",
    "long": "Describe the following image in detail.",
}
SAMPLING = SamplingSpec(max_tokens=512, temperature=0.0, top_p=1.0)
RAW_IDS = (0,)
"""The reference marks the place of the image by an id below 0, and takes 0, which is "!", for such a mark too."""
IMAGE = "<image>"
_QUESTION = "<question>"
_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_END_OF_TURN = "<|eot_id|>"
_START = "<|begin_of_text|>"
# Of Llama 3.1's own tokenizer_config.json: for checkpoints that come without one.
_STOCK = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{{ messages[0]['content'] | trim }}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{{ messages[1]['content'] | trim }}<|eot_id|>"
)


def make_prompts(folder: Path, tokenizer: Tokenizer, tokenizer_path: Path) -> PromptSpec:
    """The prompts of a checkpoint in that folder.

    Raises:
        CheckpointError: there are no stop ids, or the chat template or the tokenizer is of another model.
    """
    before, prefix, after = _split(_render(folder, f"{IMAGE}\n{_QUESTION}"), folder)
    start, _, end = _render(folder, _QUESTION).partition(_QUESTION)
    _check_marks(before + prefix + after, tokenizer, tokenizer_path)
    suffix = _encode(tokenizer, after)
    stops = _stop_ids(folder, tokenizer)
    ids = tuple(tokenizer.encode(before).ids)
    return PromptSpec(
        bos_id=ids[0],
        eos_id=stops[0],
        stop_ids=stops[1:],
        captions={name: _encode(tokenizer, prefix + text) + suffix for name, text in CAPTIONS.items()},
        query=Template(prefix=(), suffix=suffix),
        question_prefix=prefix,
        before_image=ids,
        image_attention="causal",
        text_query=Template(prefix=tuple(tokenizer.encode(start).ids), suffix=_encode(tokenizer, _with_header(end))),
    )


def _render(folder: Path, content: str) -> str:
    """A user's words in the chat template, and the system's before them."""
    template, start = _find_template(folder)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    try:
        return environment.from_string(template).render(
            messages=messages, bos_token=start, eos_token=_END_OF_TURN, add_generation_prompt=False
        )
    except (TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: the tokenizer's chat template can not be used ({reason[:200]})") from error


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _find_template(folder: Path) -> tuple[str, str]:
    """The chat template of a folder and the text that starts a prompt."""
    path = folder / "tokenizer_config.json"
    data = read_json(path) if path.is_file() else {}
    start = data.get("bos_token") or _START
    start = str(start["content"] if isinstance(start, dict) else start)
    template: Any = data.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if (file := folder / "chat_template.jinja").is_file():
        template = file.read_text(encoding="utf-8")
    return (template if isinstance(template, str) else _STOCK), start


def _split(text: str, folder: Path) -> tuple[str, str, str]:
    """What stands before the image, between it and the question, and after that."""
    before, _, rest = text.partition(IMAGE)
    prefix, found, after = rest.partition(_QUESTION)
    if not found:
        raise CheckpointError(f"{folder}: the tokenizer's chat template leaves out what the user says")
    return before, prefix, _with_header(after)


def _with_header(after: str) -> str:
    return after if after.rstrip().endswith(_HEADER.rstrip()) else after + _HEADER


def _check_marks(text: str, tokenizer: Tokenizer, path: Path) -> None:
    """Marks of the template that the tokenizer would spell letter by letter are those of another model."""
    for mark in dict.fromkeys(re.findall(r"<\|\w+\|>", text)):
        if tokenizer.token_to_id(mark) is None:
            raise CheckpointError(f"{path}: has no token {mark}, which the chat template uses; give the model's own")


def _stop_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer, the end of a turn first."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not ids:
            continue
        for token in ids:
            if type(token) is not int or tokenizer.id_to_token(token) is None:
                raise CheckpointError(f"{path}: eos_token_id {token!r} is no token of the tokenizer")
        first = tokenizer.token_to_id(_END_OF_TURN)
        return tuple(sorted(ids, key=lambda token: token != first))
    raise CheckpointError(f"{folder / 'generation_config.json'}: no eos_token_id; it says where an answer ends")


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)
