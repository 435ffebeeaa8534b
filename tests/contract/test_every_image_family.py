"""Every image family from its shrunken checkpoint to labels and embeddings: real files and the real engines.

A new entry of FAMILIES is picked up here without a change, or in test_every_family.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from edgevlm_export.calibration_images import golden_images
from edgevlm_export.families import FAMILIES
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.errors import DamagedBundle, UnsupportedTask
from edgevlm_runtime.fidelity import mean_cosine
from edgevlm_runtime.manifest import Precision
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import LoadOptions
from edgevlm_runtime.verify import verify_bundle

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
LABELS = ("a circle", "a receipt", "two cats")


@pytest.fixture(scope="module", params=sorted(name for name, family in FAMILIES.items() if not family.generates_text))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / str(request.param)
    FAMILIES[request.param].shrink(folder)
    return folder


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """One verified bundle of each precision; those in float32 and int8 hold OpenVINO IR as well."""
    root = tmp_path_factory.mktemp("bundles")
    for precision in PRECISIONS:
        export(
            ExportRequest(
                name="shrunken",
                family=checkpoint.name,
                source=checkpoint,
                out=root / precision,
                precision=precision,
                openvino=precision != "fp16",
            )
        )
    return {precision: root / precision for precision in PRECISIONS}


@pytest.fixture(scope="module")
def model(bundles: dict[Precision, Path]) -> Iterator[Model]:
    with load(bundles["fp32"], LoadOptions(engine="onnxruntime")) as opened:
        yield opened


def labels_of(model: Model) -> tuple[str, ...] | None:
    """What to choose from, for a model without classes of its own."""
    return LABELS if model.manifest.match is not None else None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bundle_says_how_true_it_is(bundles: dict[Precision, Path], precision: Precision) -> None:
    report = open_bundle(bundles[precision]).manifest.image_fidelity
    assert report is not None and report.n_images >= 4
    assert all(graph.cosine > (0.99 if precision == "int8" else 0.9999) for graph in report.graphs)
    assert all(fold.relative_error < 1e-4 and fold.nodes_after < fold.nodes_before for fold in report.folds.values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_verify_repeats_the_golden_test(bundles: dict[Precision, Path], precision: Precision) -> None:
    result = verify_bundle(bundles[precision], LoadOptions(engine="onnxruntime"))
    assert result.checks and all(check.passed for check in result.checks)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_openvino_agrees(bundles: dict[Precision, Path], precision: Precision) -> None:
    result = verify_bundle(bundles[precision], LoadOptions(engine="openvino"))
    assert result.engine == "openvino" and all(check.passed for check in result.checks)
    images = golden_images()
    with load(bundles[precision], LoadOptions(engine="openvino")) as ours:
        embeddings = ours.embed_many(images)
    with load(bundles[precision], LoadOptions(engine="onnxruntime")) as other:
        cosine = mean_cosine(embeddings, other.embed_many(images))
    assert cosine > (0.99999 if precision == "fp32" else 0.99)


def test_labels_are_ranked_and_add_up(model: Model) -> None:
    found = model.classify(golden_images()[0], top_k=1000, labels=labels_of(model)).labels
    probabilities = [label.probability for label in found]
    assert len(found) > 1 and probabilities == sorted(probabilities, reverse=True)
    if model.manifest.match is None or model.manifest.match.activation == "softmax":
        assert sum(probabilities) == pytest.approx(1.0)


def test_a_batch_answers_as_its_images_do(model: Model) -> None:
    images = golden_images()
    together = model.embed_many(images)
    assert_allclose(together, np.stack([model.embed(image) for image in images]), rtol=0, atol=1e-5)
    labels = labels_of(model)
    ranked = [found.labels[0].index for found in model.classify_many(images, labels=labels)]
    assert ranked == [model.classify(image, labels=labels).labels[0].index for image in images]


def test_the_same_image_gives_the_same_bits(model: Model) -> None:
    image = golden_images()[0]
    assert_array_equal(model.embed(image), model.embed(image))


def test_a_folder_is_ranked_by_words(model: Model, tmp_path: Path) -> None:
    for index, image in enumerate(golden_images()):
        (tmp_path / f"{index}.png").write_bytes(image)
    if "search" not in model.manifest.tasks:
        with pytest.raises(UnsupportedTask, match="can"):
            model.search(tmp_path, "a circle")
        return
    hits = model.search(tmp_path, "a circle").hits
    (text,) = model.embed_texts(["a circle"])
    expected = sorted(float(model.embed(image) @ text) for image in golden_images())
    assert_allclose([hit.score for hit in hits], expected[::-1], rtol=0, atol=1e-5)


def test_questions_are_refused_with_what_it_can(model: Model) -> None:
    with pytest.raises(UnsupportedTask, match="embed"):
        model.query(golden_images()[0], "What is this?")


def test_a_bit_flip_in_any_file_is_found(bundles: dict[Precision, Path]) -> None:
    root = bundles["int8"]
    for path in sorted(root.iterdir()):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 0x10
        path.write_bytes(flipped)
        try:
            with pytest.raises(DamagedBundle):
                open_bundle(root)
        finally:
            path.write_bytes(content)
    open_bundle(root)
