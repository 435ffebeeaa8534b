"""Golden images: written and read, and what verify says of a bundle that answers as it should, or does not."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgevlm_runtime.bundle import write_manifest
from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.errors import DamagedBundle, FidelityError, UnsupportedTask
from edgevlm_runtime.fidelity import image_report_table
from edgevlm_runtime.golden_images import (
    GoldenImages,
    ImageLimits,
    image_checks,
    read_golden_images,
    run_golden,
    write_golden_images,
)
from edgevlm_runtime.image import load_image
from edgevlm_runtime.manifest import FoldReport, GraphFidelity, ImageFidelityReport
from edgevlm_runtime.options import LoadOptions
from edgevlm_runtime.preprocess import prepare_image
from edgevlm_runtime.verify import verify_bundle
from tests.runtime.image_bundle import COLORS, HEAD, IMAGE, TABLE, WORDS, write_classifier, write_dual_encoder

LIMITS = ImageLimits(graph_cosine=0.99999, graph_relative_error=1e-4, top1_agreement=1.0, tie_nats=1e-3)
ENGINE = LoadOptions(engine="onnxruntime", threads=1)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = tuple(png(seed) for seed in range(3))
COLOR_MEANS = np.array([prepare_image(load_image(image), IMAGE).mean(axis=(1, 2)) for image in IMAGES])
FEATURES = COLOR_MEANS @ COLORS
WORD_IDS = [WORDS.index(word) for word in ("<s>", "red", "bicycle", "</s>")]
OF_CLASSIFIER = GoldenImages(
    images=IMAGES, texts=(), outputs={"classifier": {"features": FEATURES, "logits": FEATURES @ HEAD}}, limits=LIMITS
)
OF_DUAL = GoldenImages(
    images=IMAGES,
    texts=("red bicycle",),
    outputs={"vision": {"embeddings": FEATURES}, "text": {"embeddings": TABLE[WORD_IDS].mean(axis=0)[None]}},
    limits=LIMITS,
)


def with_golden(root: Path, golden: GoldenImages) -> Path:
    """A bundle, and these golden images put into it."""
    bundle = write_classifier(root) if "classifier" in golden.outputs else write_dual_encoder(root)
    write_golden_images(root / "golden.npz", golden)
    write_manifest(root, replace(bundle.manifest, golden="golden.npz"))
    return root


@pytest.mark.parametrize("golden", [OF_CLASSIFIER, OF_DUAL])
def test_written_is_read(tmp_path: Path, golden: GoldenImages) -> None:
    path = tmp_path / "golden.npz"
    write_golden_images(path, replace(golden, texts=("", "naïve 🙂\n", "\0 nul \0")))
    read = read_golden_images(path)
    assert read.images == IMAGES and read.texts == ("", "naïve 🙂\n", "\0 nul \0") and read.limits == LIMITS
    assert read.outputs.keys() == golden.outputs.keys()
    for role, outputs in golden.outputs.items():
        for name, values in outputs.items():
            np.testing.assert_array_equal(read.outputs[role][name], values)


def test_a_bundle_that_answers_as_it_should(tmp_path: Path) -> None:
    result = verify_bundle(with_golden(tmp_path / "classifier", OF_CLASSIFIER), ENGINE)
    assert [check.what for check in result.checks] == [
        "relative error of classifier features",
        "cosine of classifier features",
        "relative error of classifier logits",
        "cosine of classifier logits",
        "share of images of the same first class",
    ]
    assert result.engine == "onnxruntime" and all(check.passed for check in result.checks)
    assert len(verify_bundle(with_golden(tmp_path / "dual", OF_DUAL), ENGINE).checks) == 4


def changed(
    golden: GoldenImages, role: str, name: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> GoldenImages:
    outputs = {each: dict(values) for each, values in golden.outputs.items()}
    outputs[role][name] = change(outputs[role][name])  # type: ignore[index]
    return replace(golden, outputs=outputs)


@pytest.mark.parametrize(
    ("golden", "message"),
    [
        (
            changed(OF_CLASSIFIER, "classifier", "features", lambda x: x * 1.001),
            "relative error of classifier features",
        ),
        (changed(OF_CLASSIFIER, "classifier", "logits", lambda x: x[::-1]), "relative error of classifier logits"),
        (changed(OF_DUAL, "text", "embeddings", lambda x: x + 0.01), "relative error of text embeddings"),
        (changed(OF_DUAL, "vision", "embeddings", lambda x: x * np.nan), "relative error of vision embeddings"),
    ],
)
def test_a_bundle_that_does_not(tmp_path: Path, golden: GoldenImages, message: str) -> None:
    with pytest.raises(FidelityError, match=message):
        verify_bundle(with_golden(tmp_path / "bundle", golden), ENGINE)


def test_the_first_class_of_another_is_seen(tmp_path: Path) -> None:
    loose = replace(LIMITS, graph_relative_error=9.0, graph_cosine=-1.0)
    swapped = changed(OF_CLASSIFIER, "classifier", "logits", lambda x: np.roll(x, 1, axis=-1))
    with pytest.raises(FidelityError, match="share of images of the same first class is 0"):
        verify_bundle(with_golden(tmp_path / "bundle", replace(swapped, limits=loose)), ENGINE)
    # The bundle's class counts as the original's where that finds it nearly as likely.
    logits = np.sort(FEATURES @ HEAD, axis=-1)
    widest = float(np.ptp(logits, axis=-1).max())
    tolerant = replace(swapped, limits=replace(loose, tie_nats=widest))
    assert verify_bundle(with_golden(tmp_path / "tie", tolerant), ENGINE).checks[-1].value == 1


def test_golden_images_that_do_not_fit(tmp_path: Path) -> None:
    fewer = changed(OF_CLASSIFIER, "classifier", "logits", lambda x: x[:, :3])
    with pytest.raises(DamagedBundle, match="do not fit its output logits"):
        verify_bundle(with_golden(tmp_path / "fewer", fewer), ENGINE)
    bundle = write_classifier(tmp_path / "other")
    with pytest.raises(UnsupportedTask, match="no vision graph"):
        run_golden(bundle, open_engine("onnxruntime", 1), OF_DUAL)
    with pytest.raises(DamagedBundle, match="golden is missing"):
        verify_bundle(bundle, ENGINE)


@pytest.mark.parametrize("contents", [b"", b"PK\x03\x04" + bytes(60), b"no archive"])
def test_damaged_files(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(contents)
    with pytest.raises(DamagedBundle, match="not golden vectors"):
        read_golden_images(path)
    for arrays in ({"image.0": np.zeros(3, np.uint8)}, {"output.nothing.logits": np.zeros(3)}):
        np.savez(path, **arrays)
        with pytest.raises(DamagedBundle, match="not golden vectors"):
            read_golden_images(path)


def test_only_the_graphs_of_the_golden_images_are_run(tmp_path: Path) -> None:
    bundle = write_dual_encoder(tmp_path / "dual")
    vision_only = replace(OF_DUAL, texts=(), outputs={"vision": OF_DUAL.outputs["vision"]})
    outputs = run_golden(bundle, open_engine("onnxruntime", 1), vision_only)
    assert outputs.keys() == {"vision"}
    assert all(check.passed for check in image_checks(outputs, vision_only))


def test_the_report_as_a_table() -> None:
    report = ImageFidelityReport(
        graphs=(GraphFidelity(role="classifier", relative_error=2e-6, cosine=0.9999996),),
        n_images=8,
        top1_agreement=0.875,
        folds={"classifier": FoldReport(nodes_before=500, nodes_after=200, relative_error=3e-6)},
    )
    assert image_report_table(report) == (
        ("graph", "relative error", "cosine"),
        ("classifier", "2.0e-06", "1.000000"),
        ("classifier folded: 500 to 200 nodes", "3.0e-06", ""),
        ("top-1 of 8 images agrees", "87.5%", ""),
    )
    assert len(image_report_table(replace(report, top1_agreement=None, folds={}))) == 2
