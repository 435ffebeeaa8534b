"""Shrunken models while they learn are what the export reads of the checkpoints that they write."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import ReadOptions, Recipe
from edgevlm_export.reference import Reference, Sample
from training.batches import IGNORED, Packed, pack, random_batch
from training.cache import crop_pixels
from training.dialogue import Exchange
from training.drawing import draw
from training.proofs.asking import WEIGHTS, Teacher, asked
from training.proofs.catalog import PROOFS
from training.proofs.learner import Learner, normalized
from training.proofs.sequences import BundleLayouts, is_prompt
from training.scenes import scene

_SAID = (
    Exchange(task="query", topic="color", prompt="What color is the star?", answer="Red"),
    Exchange(task="query", topic="where", prompt="where is the red star", answer="Top left"),
    Exchange(task="caption", topic="short", prompt="short", answer="A red star and a blue heart."),
)


def _randomize(learner: Learner) -> None:
    """Nothing is zero or one, so that whatever is left out or mixed up shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
            parameter.copy_(parameter.half().float())


@pytest.mark.parametrize("name", PROOFS)
@torch.no_grad()
def test_what_is_published_computes_what_was_trained(name: str, tmp_path: Path) -> None:
    learner = PROOFS[name].new()
    _randomize(learner)
    learner.prepare(tmp_path, _SAID)
    learner.publish(tmp_path)
    layouts = learner.layouts(tmp_path)
    pixels = torch.from_numpy(crop_pixels(draw(scene("val", 0), 200)).copy())[None]
    packed = pack(layouts, [_SAID], learner.text_length)
    hidden = learner.hidden(learner.encode(pixels), packed, torch.tensor(layouts.spec.before_image))
    trained = learner.logits(hidden[packed.tokens != IGNORED])
    published = _read(name, tmp_path, pixels, layouts)
    assert trained.shape == published.shape
    assert (trained - published).abs().max() < 0.01 * trained.abs().max()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 6_000_000


def _read(name: str, folder: Path, pixels: torch.Tensor, layouts: BundleLayouts) -> torch.Tensor:
    """Logits of all answers by the original that the family makes of a checkpoint."""
    family = FAMILIES[PROOFS[name].family]
    recipe = family.read(family.open(folder, ReadOptions()), ReadOptions())
    assert isinstance(recipe, Recipe) and recipe.parts.prompt == layouts.spec
    reference = Reference(recipe)
    features = reference.open("vision").run({"crops": normalized(pixels).numpy()})["features"]
    tokens = reference.open("project").run({"features": features})["tokens"][0]
    laid = [layouts.layout(said) for said in _SAID]
    answers = [[token for token in one.tokens if token != IGNORED] for one in laid]
    samples = [
        Sample(prompt=tuple(one.ids[: len(one.ids) + 1 - len(answer)]), answer=tuple(answer))
        for one, answer in zip(laid, answers, strict=True)
    ]
    return torch.from_numpy(reference.follow(tokens, samples).logits)


def test_prompts_are_told_from_answers(tmp_path: Path) -> None:
    learner = PROOFS["llava_mini_c2"].new()
    learner.prepare(tmp_path, _SAID)
    layouts = learner.layouts(tmp_path)
    packed: Packed = pack(layouts, [_SAID], learner.text_length)
    of_prompts, start = is_prompt(packed)[0], 0
    for said in _SAID:
        laid = layouts.layout(said)
        n_answer = sum(token != IGNORED for token in laid.tokens) - 1
        expected = [True] * (len(laid.ids) - n_answer) + [False] * n_answer
        assert of_prompts[start : start + len(laid.ids)].tolist() == expected
        start += len(laid.ids)


def test_nothing_that_must_be_read_is_asked() -> None:
    scenes = [scene("val", index) for index in range(60)]
    teach, rng = Teacher(["short"]), Random(0)
    said = [teach(drawn, rng) for drawn in scenes for _ in range(10)]
    said += [one for drawn in scenes for topic in WEIGHTS for one in asked(drawn, rng, topic)]
    assert {one.topic for one in said} == {*WEIGHTS, "short"}
    assert not any('"' in one.answer or "handwritten" in one.answer for one in said)


@pytest.mark.parametrize("name", ["llava_mini_c1", "tinygpt_v"])
def test_every_parameter_learns(name: str, tmp_path: Path) -> None:
    learner = PROOFS[name].new()
    learner.prepare(tmp_path, _SAID)
    layouts = learner.layouts(tmp_path)
    drawn = scene("val", 0)
    packed = random_batch(layouts, [drawn], Random(0), learner.text_length, Teacher(["short"]))
    pixels = torch.from_numpy(crop_pixels(draw(drawn, 200)).copy())[None]
    hidden = learner.hidden(learner.encode(pixels), packed, torch.tensor(layouts.spec.before_image))
    learner.logits(hidden).square().mean().backward()
    idle = {name for name, p in learner.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert not idle
