"""Packed exchanges are computed as if each were alone, and answers decode as they were trained."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import torch
from tokenizers import Tokenizer

from edgevlm_export.modules.moondream2 import Moondream2
from training.answering import hidden_states, losses, soft_cross_entropy
from training.batches import IGNORED, Layouts, pack, random_batch
from training.cache import crop_pixels
from training.decoding import TorchAnswerer
from training.dialogue import Exchange
from training.drawing import draw
from training.model import new_model, normalized
from training.scenes import scene
from training.speed import fast_training
from training.tokenizer import COORD, EOS, corpus, train_tokenizer

_LENGTH = 96


@lru_cache(maxsize=1)
def _parts() -> tuple[Moondream2, Tokenizer]:
    return new_model(), train_tokenizer(corpus(30))


def _features(model: Moondream2) -> torch.Tensor:
    pixels = torch.from_numpy(crop_pixels(draw(scene("val", 0), 200)).copy())
    return model.vision.encode(normalized(pixels[None]))


def test_layout_of_an_answer() -> None:
    _, tokenizer = _parts()
    said = Exchange(task="query", topic="count", prompt="how many stars?", answer="3")
    laid = Layouts(tokenizer).layout(said)
    answer = tokenizer.encode("3").ids
    assert laid.ids[-len(answer) :] == answer
    assert [token for token in laid.tokens if token != IGNORED] == [*answer, EOS]


def test_layout_of_a_detection() -> None:
    _, tokenizer = _parts()
    boxes = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.25, 1.0, 0.75))
    laid = Layouts(tokenizer).layout(Exchange(task="detect", topic="detect", prompt="star", boxes=boxes))
    assert [token for token in laid.tokens if token != IGNORED] == [COORD, COORD, EOS]
    assert laid.values[-3:] == [(0.75,), (0.5,), (0.5, 0.5)]
    assert laid.regions[-7:] == [(0.25,), (0.25,), (0.5, 0.5), (0.75,), (0.5,), (0.5, 0.5), ()]
    nothing = Layouts(tokenizer).layout(Exchange(task="point", topic="point", prompt="star"))
    assert [token for token in nothing.tokens if token != IGNORED] == [EOS]


@torch.no_grad()
def test_packed_equals_alone() -> None:
    model, tokenizer = _parts()
    layouts, features = Layouts(tokenizer), _features(model)
    packed = random_batch(layouts, [scene("val", 0)], Random(0), _LENGTH)
    together = hidden_states(model, features, packed)[0]
    assert len(packed.exchanges[0]) > 2
    for number, one in enumerate(packed.exchanges[0]):
        mine = packed.segments[0] == number
        alone = pack(layouts, [[one]], int(mine.sum()))
        alone.values[0] = packed.values[0][mine]
        torch.testing.assert_close(hidden_states(model, features, alone)[0], together[mine], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_decoding_follows_the_packed_logits() -> None:
    model, tokenizer = _parts()
    answerer = TorchAnswerer(model, tokenizer, max_tokens=4)
    said = answerer.caption(answerer.encode(draw(scene("val", 0), 200)), "short").text
    packed = pack(Layouts(tokenizer), [[Exchange(task="caption", topic="short", prompt="short", answer=said)]], 200)
    predicted = model.text.logits(hidden_states(model, _features(model), packed)[0]).argmax(-1)
    first = int((packed.tokens[0] != IGNORED).int().argmax())
    assert predicted[first] == packed.tokens[0, first]


def test_losses_reach_every_part() -> None:
    model, tokenizer = _parts()
    packed = random_batch(Layouts(tokenizer), [scene("val", index) for index in range(2)], Random(1), _LENGTH)
    with fast_training():
        losses(model, _features(model).expand(2, -1, -1), packed).total.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    model.zero_grad()
    assert set(silent) <= {"region.coord_features", "region.size_features"}


def test_soft_cross_entropy_prefers_the_right_bin() -> None:
    right = 10 * torch.nn.functional.one_hot(torch.tensor([5]), 16).float()
    wrong = 10 * torch.nn.functional.one_hot(torch.tensor([12]), 16).float()
    assert soft_cross_entropy(right, torch.tensor([5.0]), 1.0) < soft_cross_entropy(wrong, torch.tensor([5.0]), 1.0)
