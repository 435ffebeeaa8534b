"""Byte-level BPE over everything that is said, with the special tokens and templates of Moondream's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.dialogue import captions, exchange
from training.model import VOCAB
from training.scenes import scene
from training.vocabulary import WORDS

EOS, ANSWER, COORD, SIZE = 0, 3, 5, 6
SPECIAL_TOKENS = ("<|endoftext|>", *(f"<|reserved_{i}|>" for i in range(1, 16)))
TEMPLATES: dict[str, dict[str, list[int]]] = {
    "caption": {"short": [1, 10, 2, 11, 3], "normal": [1, 10, 2, 12, 3], "long": [1, 10, 2, 13, 3]},
    "query": {"prefix": [1, 14, 2], "suffix": [3]},
    "detect": {"prefix": [1, 15, 2], "suffix": [3]},
    "point": {"prefix": [1, 8, 2], "suffix": [3]},
}
TOKENIZER_CONFIG: dict[str, Any] = {
    "bos_id": 0,
    "eos_id": EOS,
    "answer_id": ANSWER,
    "thinking_id": 4,
    "coord_id": COORD,
    "size_id": SIZE,
    "start_ground_points_id": 7,
    "end_ground_id": 9,
    "templates": TEMPLATES,
}


def corpus(n_scenes: int) -> Iterator[str]:
    """Texts about training scenes, each word of the vocabulary at least some times."""
    rng = Random(0)
    for index in range(n_scenes):
        drawn = scene("train", index)
        yield from (said.answer for said in captions(drawn).values())
        for _ in range(6):
            said = exchange(drawn, rng)
            yield said.prompt if said.task == "query" else f" {said.prompt}"
            yield said.answer
    for word in WORDS:
        yield from [f'{word} a red word "{word}"'] * 20


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of VOCAB ids, of which the first sixteen are special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, task: str, prompt: str) -> list[int]:
    """The whole prompt of a task. A question's suffix comes twice, as in the reference without reasoning."""
    if task == "caption":
        return TEMPLATES["caption"][prompt]
    template = TEMPLATES[task]
    text = prompt if task == "query" else f" {prompt}"
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return template["prefix"] + ids + template["suffix"] * (2 if task == "query" else 1)
