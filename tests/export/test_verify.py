"""Verification passes a right bundle in every precision, and a wrong one never."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgevlm_export import pipeline, text_pipeline
from edgevlm_export.families.family import Recipe
from edgevlm_export.families.moondream2.random_weights import write_shrunken
from edgevlm_export.fidelity import BARS, compare_outputs, report_checks
from edgevlm_export.reference import Reference, Sample
from edgevlm_export.verify import MIN_POSITIONS, N_PARTS, verify_export
from edgevlm_runtime.bundle import Bundle, open_bundle, write_manifest
from edgevlm_runtime.errors import DamagedBundle, FidelityError
from edgevlm_runtime.fidelity import mean_cosine, mean_divergence, relative_error, report_table, require, share_agreeing
from edgevlm_runtime.golden import GOLDEN, read_golden, write_golden
from edgevlm_runtime.manifest import FidelityReport, Precision
from edgevlm_runtime.verify import verify_bundle
from tests.export.conftest import Trace, read_recipe
from tests.oracles.moondream2_numpy import Oracle, Sizes

TINY_SIZES = Sizes(heads=2, kv_heads=1, vision_heads=2, patch=14, crop=70, margin=1)
Export = Callable[[Precision], Bundle]


@pytest.fixture(scope="module")
def export_once(tiny: Path, trace_once: Trace, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Verified bundles of the shrunken checkpoint."""
    out = tmp_path_factory.mktemp("verified")
    bundles: dict[Precision, Bundle] = {}

    def export(precision: Precision) -> Bundle:
        if precision not in bundles:
            request = pipeline.ExportRequest(
                name="tiny", family="moondream2", source=tiny, out=out / precision, precision=precision
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(text_pipeline, "trace", trace_once)
                bundles[precision] = pipeline.export(request)
        return bundles[precision]

    return export


@pytest.fixture(name="report")
def fixture_report(export_once: Export) -> FidelityReport:
    report = export_once("int8").manifest.fidelity
    assert report is not None
    return report


def copied(bundle: Bundle, to: Path) -> Path:
    return Path(shutil.copytree(bundle.root, to / "copy"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_right_bundle_passes(export_once: Export, precision: Precision) -> None:
    bundle = export_once(precision)
    report = bundle.manifest.fidelity
    assert report is not None and report.n_positions >= MIN_POSITIONS
    assert {graph.role for graph in report.graphs} == set(bundle.manifest.graphs)
    assert bundle.manifest.golden == GOLDEN and bundle.manifest.files[GOLDEN].bytes < 200_000
    result = verify_bundle(bundle)
    assert result.engine == "onnxruntime" and len(result.checks) == 2 * len(report.graphs)
    assert all(check.passed for check in result.checks)


def test_float32_is_as_near_as_sums_allow(export_once: Export) -> None:
    report = export_once("fp32").manifest.fidelity
    assert report is not None
    assert report.logits_relative_error < 1e-5 and report.kl_divergence < 1e-8
    assert report.greedy_agreement == report.top1_agreement == 1.0


def test_int8_is_seen_to_be_less_near(export_once: Export, report: FidelityReport) -> None:
    exact = export_once("fp32").manifest.fidelity
    assert exact is not None
    assert report.logits_relative_error > 100 * exact.logits_relative_error
    with pytest.raises(FidelityError, match="relative error of vision"):
        require(report_checks(report, BARS["fp32"]), "tiny")


def test_a_bundle_of_other_weights_fails(export_once: Export, tmp_path: Path) -> None:
    write_shrunken(tmp_path / "other", seed=1)
    parts: list[None] = []
    with pytest.raises(FidelityError, match=r"relative error of vision is .*, but must be at most 0\.15") as caught:
        verify_export(
            copied(export_once("int8"), tmp_path), read_recipe(tmp_path / "other"), lambda: parts.append(None)
        )
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    assert len(parts) == N_PARTS - 1


@pytest.mark.parametrize("graph", ["vision", "decoder", "region_size_decoder"])
def test_weights_that_changed_under_a_new_checksum_fail(export_once: Export, tmp_path: Path, graph: str) -> None:
    root = copied(export_once("fp32"), tmp_path)
    data = root / f"{graph}.onnx.data"
    weights = np.fromfile(data, np.uint8)
    weights[len(weights) // 2 :] = 0
    weights.tofile(data)
    with pytest.raises(DamagedBundle, match=r"\.onnx\.data"):
        verify_bundle(root)
    write_manifest(root, open_bundle(root, check=False).manifest)
    with pytest.raises(FidelityError) as caught:
        verify_bundle(root)
    assert "must be at" in str(caught.value)


def test_golden_vectors_survive_their_file(export_once: Export, tmp_path: Path) -> None:
    golden = read_golden(export_once("int8").root / GOLDEN)
    write_golden(tmp_path / GOLDEN, golden)
    again = read_golden(tmp_path / GOLDEN)
    assert (again.image, again.max_crops, again.limits) == (golden.image, golden.max_crops, golden.limits)
    assert again.answer.answer == golden.answer.answer
    for ours, theirs in zip(again.graphs, golden.graphs, strict=True):
        assert ours.role == theirs.role and (ours.given is None) == (theirs.given is None)
        np.testing.assert_array_equal(ours.values, theirs.values)


def test_golden_vectors_of_another_model_are_refused(export_once: Export, tmp_path: Path) -> None:
    root = copied(export_once("fp32"), tmp_path)
    manifest, golden = open_bundle(root, check=False).manifest, read_golden(root / GOLDEN)
    narrow = dataclasses.replace(golden.graphs[0], values=golden.graphs[0].values[:, :-1])
    write_golden(root / GOLDEN, dataclasses.replace(golden, graphs=(narrow, *golden.graphs[1:])))
    write_manifest(root, manifest)
    with pytest.raises(DamagedBundle, match="golden vectors of graph vision do not fit"):
        verify_bundle(root)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no more", b"\x93NUMPY"])
def test_a_damaged_golden_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / GOLDEN).write_bytes(content)
    with pytest.raises(DamagedBundle, match=GOLDEN) as caught:
        read_golden(tmp_path / GOLDEN)
    assert "\n" not in str(caught.value)


def test_samples_packed_into_one_pass_do_not_see_each_other(recipe: Recipe) -> None:
    """The single pass over all samples says what the oracle says of each sample alone."""
    oracle = Oracle(TINY_SIZES, {name: recipe.weights[name].numpy() for name in recipe.weights})
    image = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    prefix = oracle.prefix(0, image)
    samples = [Sample(prompt=(1, 20, 3), answer=(44, 45)), Sample(prompt=(9,), answer=(8, 7, 6, 0))]
    steps = Reference(recipe).follow(image, samples)
    expected = []
    for sample in samples:
        tokens = oracle.embed([*sample.prompt, *sample.answer[:-1]])
        hidden = oracle.hidden(np.concatenate([prefix, tokens]), len(prefix))
        expected.append(hidden[-len(sample.answer) :])
    assert relative_error(steps.hidden, np.concatenate(expected)) < 1e-5
    assert relative_error(steps.logits, oracle.logits(np.concatenate(expected))) < 1e-5


def test_images_in_one_pass_do_not_see_each_other(recipe: Recipe) -> None:
    rng, reference = np.random.default_rng(0), Reference(recipe)
    images = [rng.standard_normal((n, 64)).astype(np.float32) for n in (7, 4)]
    samples = [Sample(prompt=(1, 20, 3), answer=(44, 45)), Sample(prompt=(9,), answer=(8, 7, 6, 0))]
    together = reference.follow_each(images, samples)
    alone = [reference.follow(image, samples) for image in images]
    assert relative_error(together.logits, np.concatenate([steps.logits for steps in alone])) < 1e-5
    assert relative_error(together.hidden, np.concatenate([steps.hidden for steps in alone])) < 1e-5


def test_figures_by_hand() -> None:
    reference = np.array([[3.0, 4.0], [0.0, -8.0]])
    assert relative_error(reference + np.array([[0.0, 2.0], [0.0, 0.0]]), reference) == 0.25
    assert mean_cosine(np.array([[4.0, 3.0], [0.0, -1.0]]), reference) == pytest.approx((0.96 + 1) / 2)
    assert mean_divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])) == pytest.approx(
        0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    )
    worst = compare_outputs("decoder", [(reference, reference), (reference * [[1, 1], [1, 0.5]], reference)])
    assert worst.relative_error == 0.5 and worst.cosine == 1.0


def test_a_tie_is_not_a_disagreement() -> None:
    logits = np.log([[0.5, 0.46, 0.04], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5]])
    assert share_agreeing(logits, (1, 0, 2), tie_nats=0.1) == 1.0
    assert share_agreeing(logits, (1, 0, 2), tie_nats=0.05) == pytest.approx(2 / 3)
    assert share_agreeing(logits, (2, 1, 1), tie_nats=0.1) == 0.0


def test_figures_that_are_not_numbers_fail(report: FidelityReport) -> None:
    nan = float("nan")
    for broken in (
        dataclasses.replace(report, logits_relative_error=nan),
        dataclasses.replace(report, top1_agreement=nan),
        dataclasses.replace(report, kl_divergence=nan),
        dataclasses.replace(report, greedy_agreement=nan),
    ):
        assert sum(not check.passed for check in report_checks(broken, BARS["int8"])) == 1


def test_the_table_has_a_row_for_every_figure(report: FidelityReport) -> None:
    table = report_table(report)
    assert len(table) == 1 + len(report.graphs) + 4
    assert {len(row) for row in table} == {3}
