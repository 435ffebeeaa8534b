"""Detect and point against the same loops without a cache, and the scales of sizes."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgevlm_runtime.answer import Point
from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import Array, Graph, SharedBuffers
from edgevlm_runtime.errors import DamagedBundle, InvalidOption
from edgevlm_runtime.manifest import RegionSpec, Role
from edgevlm_runtime.model import Model
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.regions import Regions
from edgevlm_runtime.tokenizer import TextTokenizer
from tests.runtime.fake_bundle import ANSWER, ASK, EOS, REGION, make_model, write_bundle
from tests.runtime.fake_engine import CACHE, TinyDecoder
from tests.runtime.recompute import Recomputed

Tiny = tuple[Model, TinyDecoder]
IMAGE = 10


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> TextTokenizer:
    return TextTokenizer(bundle.path("tokenizer.json"))


def asked(text: TextTokenizer, task: int, name: str) -> tuple[int, ...]:
    return (ASK, task, *text.encode(" " + name), ANSWER)


@pytest.mark.parametrize("n_objects", [0, 1, 3, 9])
@pytest.mark.parametrize("max_objects", [2, 50])
def test_detect_is_that_of_the_whole_sequence(
    tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer, n_objects: int, max_objects: int
) -> None:
    model, decoder = tiny
    prompt = asked(text, 23, "cup")
    decoder.script = {IMAGE + len(prompt) - 1 + 3 * n_objects: EOS}
    image = model.encode(photo)
    found = model.detect(image, "cup", GenerateOptions(max_objects=max_objects))
    limit = min(max_objects, REGION.max_objects)
    expected = Recomputed(decoder, image.embeddings).objects(prompt, limit, sized=True)
    assert len(expected) == min(n_objects, limit)
    edges = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in expected]
    for box, expected_edges in zip(found.objects, edges, strict=True):
        assert astuple(box) == pytest.approx(expected_edges, abs=1e-12)
    assert found.usage.completion_tokens == 3 * len(expected)
    assert found.usage.prompt_tokens == len(prompt)
    assert found.usage.image_tokens == 9


@pytest.mark.parametrize("n_objects", [0, 1, 4])
def test_point_is_that_of_the_whole_sequence(
    tiny: Tiny, photo: npt.NDArray[np.uint8], text: TextTokenizer, n_objects: int
) -> None:
    model, decoder = tiny
    prompt = asked(text, 24, "red cup")
    decoder.script = {IMAGE + len(prompt) - 1 + 2 * n_objects: EOS}
    image = model.encode(photo)
    found = model.point(image, "red cup")
    expected = Recomputed(decoder, image.embeddings).objects(prompt, 4, sized=False)
    assert found.points == tuple(Point(x=x, y=y) for x, y in expected)
    assert found.usage.completion_tokens == 2 * n_objects


def test_a_full_context_ends_the_objects(tmp_path: Path, photo: npt.NDArray[np.uint8]) -> None:
    bundle = write_bundle(tmp_path / "many", region=replace(REGION, max_objects=50))
    model, decoder = make_model(bundle)
    decoder.script = dict.fromkeys(range(CACHE.max_context), 70)
    boxes, points = model.detect(photo, "cup"), model.point(photo, "cup")
    assert len(boxes.objects) == (CACHE.max_context - IMAGE - boxes.usage.prompt_tokens) // 3
    assert len(points.points) == (CACHE.max_context - IMAGE - points.usage.prompt_tokens) // 2


def test_an_image_can_be_asked_again_after_objects(tiny: Tiny, photo: npt.NDArray[np.uint8]) -> None:
    model, _ = tiny
    image = model.encode(photo)
    options = GenerateOptions(max_tokens=6)
    before = model.query(image, "how many", options)
    first = model.detect(image, "cup")
    assert model.point(image, "cup").points != ()
    assert model.detect(image, "cup").objects == first.objects
    assert model.query(image, "how many", options).token_ids == before.token_ids


def test_a_blank_name_is_refused(tiny: Tiny, photo: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidOption, match="name is empty"):
        tiny[0].detect(photo, " ")


def test_a_task_without_its_template_is_a_damaged_bundle(tmp_path: Path, photo: npt.NDArray[np.uint8]) -> None:
    model, _ = make_model(write_bundle(tmp_path / "broken", region=None))
    with pytest.raises(DamagedBundle, match="region is missing"):
        model.detect(photo, "cup")


class _Bins(Graph):
    """Logits (1, 2, bins) whose largest are at two bins, as likely again one bin later."""

    def __init__(self, n_bins: int, width: int, height: int) -> None:
        self.logits = np.zeros((1, 2, n_bins), np.float32)
        self.logits[0, 0, width : width + 2] = 1
        self.logits[0, 1, height : height + 2] = 1

    def run(self, inputs: dict[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:  # type: ignore[override]
        (name,) = inputs
        assert name == "hidden"
        return {"logits": self.logits}


@pytest.mark.parametrize(
    ("scale", "width", "height", "expected"),
    [
        ("log", 0, 1023, (2.0**-10, 1.0)),
        ("log", 511, 1022, (2 ** (5110 / 1023 - 10), 2 ** (10220 / 1023 - 10))),
        ("linear", 0, 1023, (0.0, 1023 / 1024)),
        ("linear", 512, 1, (0.5, 1 / 1024)),
    ],
)
def test_scales_of_sizes(scale: str, width: int, height: int, expected: tuple[float, float]) -> None:
    spec = RegionSpec(coordinate_bins=1024, size_bins=1024, size_scale=scale)  # type: ignore[arg-type]
    opened: list[Role] = []

    def open_graph(role: Role) -> Graph:
        opened.append(role)
        return _Bins(1024, width, height)

    assert Regions(spec, open_graph).decode_size(np.zeros((1, 4), np.float32)) == pytest.approx(expected, rel=1e-12)
    assert opened == ["region_size_decoder"]


def test_coordinates_are_bins_over_their_number() -> None:
    class Coordinate(_Bins):
        def __init__(self) -> None:
            self.logits = np.zeros((1, 1024), np.float32)
            self.logits[0, 1023] = 1

    spec = RegionSpec(coordinate_bins=1024, size_bins=1024, size_scale="log")
    assert Regions(spec, lambda role: Coordinate()).decode_coordinate(np.zeros((1, 4), np.float32)) == 1023 / 1024
