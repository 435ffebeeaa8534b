"""The comparison of compressed and plain prefixes: its operations against counted ones, and a reduced-size model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import prefix_costs, prefix_ratio, tables
from benchmarks.prefix_costs import Shapes, Words, read_shapes
from benchmarks.prefix_ratio import Prefixes, Ratios, as_json, compare, in_turns, opened, publish, render
from edgevlm_export import text_pipeline
from edgevlm_export.families.llava_mini.graphs import text_of, whole_fuser
from edgevlm_export.families.llava_mini.random_weights import FULL, TINY, write_shrunken
from edgevlm_export.modules.clip_vision import ClipVision
from edgevlm_export.modules.llava_mini import LlavaMini, LlavaMiniConfig, project
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.manifest import Precision
from tests.export.conftest import skip_verification

_WORDS = Words(before=60, fused_before=59, question=20, fused_question=20)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix") / "checkpoint"
    write_shrunken(folder, compressor_size=2, resolution_ratio=2)
    return folder


@pytest.fixture(scope="module", params=["fp32", "fp16", "int4"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path) -> Bundle:
    precision: Precision = request.param
    out = checkpoint.with_name(precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_pipeline, "verify_export", skip_verification)
        return export(ExportRequest(name="tiny", family="llava_mini", source=checkpoint, out=out, precision=precision))


def test_sizes_are_read_from_graphs_of_every_precision(bundle: Bundle) -> None:
    found = read_shapes(bundle)
    config = replace(TINY, compressor_size=2, resolution_ratio=2)
    wanted = _shapes(config)
    assert found.crops == 5
    # A quantized embedding of patches has rows that are padded.
    assert found.vision_values == pytest.approx(wanted.vision_values, rel=0.03)
    assert replace(found, vision_values=wanted.vision_values) == wanted


def test_operations_of_fusion_and_decoder_are_those_of_the_modules() -> None:
    """torch counts what the modules multiply in a whole new image and a whole plain prefix."""
    module, shapes = LlavaMini(TINY), _shapes(TINY)
    n_fused = shapes.features + shapes.compressed + _WORDS.fused_before
    n_plain = _WORDS.before + shapes.patches + _WORDS.question
    n_read = _WORDS.before + shapes.compressed
    question = prefix_costs.second_question(shapes, _WORDS)
    fused, read = _fused(module, n_fused), _decoded(module, n_read)
    assert prefix_costs.plain_prefix(shapes, _WORDS) == _decoded(module, n_plain)
    assert prefix_costs.new_image(shapes, _WORDS) - question == fused + read


def test_operations_of_a_second_question_are_those_that_are_left() -> None:
    """A whole sequence less what was read: the matrices' exactly, attention's by what each token sees."""
    module, shapes = LlavaMini(TINY), _shapes(TINY)
    n_fused, n_read = shapes.features + shapes.compressed + _WORDS.fused_before, _WORDS.before + shapes.compressed
    whole = _fused(module, n_fused + _WORDS.fused_question) + _decoded(module, n_read + _WORDS.question)
    read = _fused(module, n_fused) + _decoded(module, n_read) - 2 * shapes.head_values
    # In one call the image's tokens are scored with the question's too, in vain.
    unseen = sum(
        4 * n_layers * n_past * n_new * shapes.dim
        for n_layers, n_past, n_new in (
            (shapes.fusion_layers, n_fused, _WORDS.fused_question),
            (shapes.layers, n_read, _WORDS.question),
        )
    )
    assert prefix_costs.second_question(shapes, _WORDS) == whole - read - unseen


@pytest.mark.parametrize("ratio", [1, 2])
def test_operations_of_both_towers_are_those_of_the_modules(ratio: int) -> None:
    config = replace(TINY, compressor_size=2, resolution_ratio=ratio)
    module, shapes, side = LlavaMini(config), _shapes(config), config.vision.image_px
    features = torch.zeros(1, config.n_features, config.vision.dim)
    crops = _counted(lambda: ClipVision.encode(module.vision, torch.zeros(shapes.crops, 3, side, side)))
    compressed = _counted(lambda: project(config, module.compressor, module.projector, features))
    class_token = 2 * shapes.crops * 3 * config.vision.patch_px**2 * config.vision.dim
    assert prefix_costs.compressing_tower(shapes) == crops + compressed + class_token
    plain = _counted(lambda: module.projector(features[:, : shapes.patches]))
    assert prefix_costs.plain_tower(shapes) == (crops + class_token) // shapes.crops + plain


def test_the_paper_s_saving_is_found_in_its_own_model() -> None:
    """Vicuna 7B and 45 words: 8.55 and 1.96 TFLOP are the paper's."""
    config = replace(FULL, text=replace(FULL.text, ff_dim=11008, n_kv_heads=32, vocab_size=32000))
    shapes, words = _shapes(config), Words(before=35, fused_before=35, question=10, fused_question=10)
    plain = prefix_costs.plain_prefix(shapes, words) + prefix_costs.plain_tower(shapes)
    ours = prefix_costs.new_image(shapes, words) + prefix_costs.compressing_tower(shapes)
    assert plain == pytest.approx(8.55e12, rel=0.05) and ours == pytest.approx(1.96e12, rel=0.05)
    assert prefix_costs.saving(shapes, words, with_tower=True) == pytest.approx(prefix_ratio.PAPER_SAVING, abs=0.01)


def test_every_way_asks_the_same_again_and_again(bundle: Bundle) -> None:
    """What a way leaves in a cache would change the next round."""
    shapes = read_shapes(bundle)
    with opened(bundle, "auto", 1) as parts:
        prefixes = Prefixes(parts, shapes)
        second, plain = prefixes.second_question(), prefixes.plain_prefix()
        np.testing.assert_array_equal(prefixes.new_image(), second)
        np.testing.assert_array_equal(prefixes.second_question(), second)
        np.testing.assert_array_equal(prefixes.plain_prefix(), plain)
        assert not np.allclose(second, plain, atol=1e-3)


def test_a_reduced_model_is_measured_and_not_published(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    ratios = compare(bundle, repeats=2, threads=1)
    assert {way: len(taken) for way, taken in ratios.ms.items()} == dict.fromkeys(prefix_costs.ALL, 2)
    publish(ratios)
    assert not ratios.is_full_size and not list(tmp_path.iterdir())
    assert json.loads(json.dumps(as_json(ratios)))["words"]["before"] == ratios.words.before


def test_the_ways_take_turns_and_the_first_round_does_not_count() -> None:
    asked: list[str] = []
    taken = in_turns({name: partial(asked.append, name) for name in "abc"}, 2)
    assert "".join(asked) == "abcbcacab"
    assert {name: len(ms) for name, ms in taken.items()} == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize(("second_ms", "told"), [(4000.0, "5.0 times faster"), (4001.0, "no")])
def test_the_target_is_told_as_it_is(second_ms: float, told: str) -> None:
    text = render(_ratios(second_ms))
    assert "| 576 image tokens and the question through the decoder alone | 20.00 s ± 0% | 1.0x |" in text
    assert "the paper says 77%" in text and told in text
    assert f"at least 5 times was wanted: {'yes' if second_ms == 4000.0 else 'no'}." in text


def test_a_full_model_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections: dict[str, str] = {}
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(prefix_ratio, "write_section", sections.__setitem__)
    publish(_ratios(2000.0))
    assert json.loads((tmp_path / "prefix_ratio.json").read_text())["faster"]["second_question"] == 10.0
    assert f"<!-- {next(iter(sections))} -->" in (tables.ROOT / "README.md").read_text(encoding="utf-8")


def _ratios(second_ms: float) -> Ratios:
    ms = {"second_question": [second_ms] * 3, "new_image": [5000.0] * 3, "plain_prefix": [20_000.0] * 3}
    return Ratios(model="full", precision="int4", shapes=_shapes(FULL), words=_WORDS, ms=ms)


def _shapes(config: LlavaMiniConfig) -> Shapes:
    """Sizes as the configuration has them."""
    text, vision = config.text, config.vision
    layer = text.dim * (2 * text.dim + 2 * text.n_kv_heads * text.head_dim + 3 * text.ff_dim)
    block = 4 * vision.dim**2 + 2 * vision.dim * vision.ff_dim
    return Shapes(
        dim=text.dim,
        patches=vision.n_patches,
        features=config.n_features,
        compressed=config.n_compressed,
        fusion_layers=config.n_prefusion_layers,
        fusion_values=config.n_prefusion_layers * layer,
        layers=text.n_layers,
        layer_values=text.n_layers * layer,
        head_values=text.dim * text.vocab_size,
        vision_dim=vision.dim,
        vision_layers=vision.n_layers,
        vision_values=vision.n_layers * block + 3 * vision.patch_px**2 * vision.dim,
    )


def _fused(module: LlavaMini, n_tokens: int) -> int:
    return _counted(lambda: whole_fuser(module)(*_sequence(n_tokens, module.config.text.dim)))


def _decoded(module: LlavaMini, n_tokens: int) -> int:
    text = text_of(module)
    return _counted(lambda: text.logits(text.hidden(*_sequence(n_tokens, module.config.text.dim))[:, -1]))


def _sequence(n_tokens: int, dim: int) -> Iterator[torch.Tensor]:
    """Embeddings, positions and a mask under which all is seen."""
    yield from (torch.zeros(1, n_tokens, dim), torch.arange(n_tokens), torch.zeros(1, 1, n_tokens, n_tokens))


def _counted(run: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused one is not counted
        run()
    total: int = counter.get_total_flops()
    return total
