"""Images in batches: the same as one by one, whatever their sizes and neighbors, through a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.errors import DamagedBundle, EngineError
from edgevlm_runtime.image_encoder import ImageEncoder
from edgevlm_runtime.manifest import GraphSpec, TensorSpec
from edgevlm_runtime.preprocess import prepare_image
from tests.runtime.image_bundle import COLORS, DIM, IMAGE, write_encoder


def photos(count: int) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*rng.integers(5, 40, 2), 3), dtype=np.uint8) for _ in range(count)]


def make_encoder(folder: Path, images: int | str = "images") -> ImageEncoder:
    bundle = write_encoder(folder, images=images)
    graph = open_engine("onnxruntime", 1).open(bundle.path("vision.onnx"))
    return ImageEncoder(IMAGE, graph, bundle.manifest.graphs["vision"])


@pytest.mark.parametrize(("images", "batch"), [("images", 8), (1, 1)])
def test_batches_are_as_single_images(tmp_path: Path, images: int | str, batch: int) -> None:
    encoder = make_encoder(tmp_path, images)
    assert encoder.batch == batch
    pixels = photos(19)
    together = encoder.run(pixels)["embeddings"]
    assert together.shape == (19, DIM) and together.dtype == np.float32
    for each, row in zip(pixels, together, strict=True):
        np.testing.assert_allclose(encoder.run([each])["embeddings"][0], row, rtol=1e-5, atol=1e-6)
        wanted = prepare_image(each, IMAGE).astype(np.float64).mean(axis=(1, 2)) @ COLORS
        np.testing.assert_allclose(row, wanted, rtol=1e-4, atol=1e-5)


def test_no_images(tmp_path: Path) -> None:
    assert make_encoder(tmp_path).run([])["embeddings"].shape == (0, DIM)


def test_progress_and_one_image_in_memory_at_a_time(tmp_path: Path) -> None:
    events: list[str] = []

    def load() -> Iterator[npt.NDArray[np.uint8]]:
        for pixels in photos(10):
            events.append("load")
            yield pixels

    make_encoder(tmp_path).run(load(), lambda: events.append("done"))
    assert events == ["load"] * 8 + ["done"] * 8 + ["load"] * 2 + ["done"] * 2


def test_large_images_go_one_by_one() -> None:
    shape = ("images", 3, 1024, 1024)
    assert ImageEncoder(replace(IMAGE, crop_px=1024), Stub({}), spec(shape)).batch == 1
    assert ImageEncoder(replace(IMAGE, crop_px=384), Stub({}), spec(("images", 3, 384, 384))).batch == 8


@pytest.mark.parametrize(
    "graph",
    [
        lambda: spec(("images", 3, 8, 9)),
        lambda: spec((4, 3, 8, 8)),
        lambda: spec(("images", 192)),
        lambda: replace(spec(("images", 3, 8, 8)), inputs=()),
        lambda: spec(("images", 3, 8, 8), ("images", "dim")),
        lambda: spec(("images", 3, 8, 8), ()),
    ],
)
def test_other_kinds_of_graphs_are_refused(graph: object) -> None:
    with pytest.raises(DamagedBundle, match=r"manifest\.json: .*export the model again"):
        ImageEncoder(IMAGE, Stub({}), graph())  # type: ignore[operator]


@pytest.mark.parametrize("outputs", [{}, {"embeddings": np.zeros((2, DIM), np.float32)}])
def test_a_graph_that_gives_something_else(outputs: dict[str, np.ndarray]) -> None:
    encoder = ImageEncoder(IMAGE, Stub(outputs), spec(("images", 3, 8, 8)))
    with pytest.raises(EngineError, match="output embeddings is"):
        encoder.run(photos(3))


def spec(shape: tuple[int | str, ...], output: tuple[int | str, ...] = ("images", DIM)) -> GraphSpec:
    return GraphSpec(
        file="vision.onnx",
        precision="fp32",
        inputs=(TensorSpec(name="images", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="embeddings", dtype="float32", shape=output),),
    )


class Stub:
    """A graph that always gives the same."""

    def __init__(self, outputs: dict[str, np.ndarray]) -> None:
        self._outputs = outputs

    def run(self, inputs: object, shared: object = ()) -> dict[str, np.ndarray]:
        return self._outputs
