"""LLaVA-Mini and TinyGPT-V in the comparison: their bundles, PyTorch's models, what they must cost, their tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import eager, llava_mini, ours, tinygpt_v
from benchmarks.peers.__main__ import absent_llama
from benchmarks.peers.contestants import EAGER, OURS, Contestant, eager_contestants, our_contestants
from benchmarks.peers.eager_parts import EagerModel
from benchmarks.peers.figures import peer_figures
from benchmarks.peers.machine import Limits
from benchmarks.peers.models import LLAVA_MINI, TINYGPT_V, find_bundles, shapes_of, sizes
from benchmarks.peers.questions import Questions, questions_of
from benchmarks.peers.report import Results, ratio_table, render, shares, targets
from benchmarks.peers.shapes import Shapes
from benchmarks.peers.workload import Run
from edgevlm_export.families.llava_mini.random_weights import TINY as TINY_LLAVA
from edgevlm_export.families.tinygpt_v.random_weights import TINY as TINY_TINYGPT
from edgevlm_runtime.bundle import open_bundle

_FAMILIES = (LLAVA_MINI, TINYGPT_V)


@pytest.fixture(scope="module", params=_FAMILIES)
def small(request: pytest.FixtureRequest) -> Shapes:
    """A family's small model under its quick workload, on one thread and shortened."""
    shapes = shapes_of(request.param, quick=True)
    return replace(shapes, workload=replace(shapes.workload, threads=1, answer_tokens=4, sweep_tokens=3))


@pytest.fixture(scope="module")
def bundle(small: Shapes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle."""
    folder = tmp_path_factory.mktemp(small.name)
    (found,) = find_bundles(small, folder)
    assert found == folder / f"{small.name}-int4"
    return found


def test_ours_is_asked_what_the_workload_says(small: Shapes, bundle: Path) -> None:
    """Lengths of prefix, questions and answers are checked where they are asked; whatever differs raises."""
    run = ours.run(bundle, "onnxruntime", small.workload)
    manifest = open_bundle(bundle).manifest
    assert manifest.precision == "int4" and manifest.cache is not None
    bytes_per_value = {"float32": 4, "float16": 2, "int8": 1}[manifest.cache.dtype]
    assert run.position_bytes == small.costs.cache_values * bytes_per_value
    assert set(run.depth_tokens_per_second) == set(small.workload.depths)
    assert run.restart_ms is not None and run.one_image_rss is not None and run.vision_ms > 0


def test_another_prefix_is_no_figure(small: Shapes, bundle: Path) -> None:
    longer = replace(small.workload, prefix_tokens=1 + small.workload.prefix_tokens, full=False)
    with pytest.raises(RuntimeError, match="work did not return"):
        ours.run(bundle, "onnxruntime", longer)


def test_questions_have_the_length_that_is_asked_for(small: Shapes, bundle: Path) -> None:
    questions = questions_of(open_bundle(bundle))
    assert questions.about_image < 16 and questions.alone < small.workload.depths[0]
    with pytest.raises(RuntimeError, match="no question has 9 tokens: the prompt takes 9"):
        Questions(start="", about_image=9, alone=0).of(9, image=True)


def test_only_our_default_engine_takes_part_without_ir(small: Shapes, bundle: Path) -> None:
    (mine,) = our_contestants([bundle], None)
    assert mine.label == "EdgeVLM int4 onnxruntime (auto)"
    assert mine.weights_bytes == sum(file.stat().st_size for file in bundle.glob("decoder.onnx*"))


def test_eager_pytorch_under_the_workload(small: Shapes) -> None:
    run = eager.run(small.config, "bfloat16", small.workload)
    depths = {depth for depth in small.workload.depths if depth <= small.workload.question_depth}
    assert set(run.depth_tokens_per_second) == depths
    assert run.position_bytes == 2 * small.costs.cache_values
    assert min(run.vision_ms, run.prefix_ms, run.question_ms, run.tokens_per_second) > 0


def test_eager_pytorch_keeps_an_image_and_forgets_questions(small: Shapes) -> None:
    """A second question costs what the first one did: no cache has grown by it, none is without the image."""
    model, side = _built(small), small.workload.side
    ask = partial(model.ask, torch.arange(1, 17)[None])
    with torch.inference_mode():
        model.read_image(model.see(torch.randn(1, 3, side, side)))
        first = _counted(ask)
        model.forget(small.workload.prefix_tokens)
        assert _counted(ask) == first
        assert model.length == small.workload.question_depth
        model.forget(0)
        assert _counted(ask) < first


def test_operations_of_an_image_are_those_of_transformers(small: Shapes) -> None:
    model, side = _built(small), small.workload.side
    assert _counted(partial(model.see, torch.zeros(1, 3, side, side))) == small.costs.crop_operations


def test_operations_of_llava_mini_s_prefix_are_those_of_transformers() -> None:
    """Token by token each sees itself and what is before it, and no other is multiplied with."""
    shapes, n_tokens = shapes_of(LLAVA_MINI, quick=True), 5
    mixed = TINY_LLAVA.vision.n_patches + n_tokens
    mixing = _one_by_one(_built(shapes).ask, mixed) - _one_by_one(_built(shapes).read, mixed)
    reading = _one_by_one(_built(shapes).read, n_tokens) - n_tokens * _head(shapes)
    tables = (mixed + n_tokens) * TINY_LLAVA.text.head_dim
    assert llava_mini.prefix_operations(TINY_LLAVA, n_tokens) == mixing + reading - tables


def test_operations_of_tinygpt_v_s_prefix_are_those_of_transformers() -> None:
    shapes, n_tokens = shapes_of(TINYGPT_V, quick=True), 5
    reading = _one_by_one(_built(shapes).read, n_tokens) - n_tokens * _head(shapes)
    tables = n_tokens * TINY_TINYGPT.text.rotary_dim
    assert tinygpt_v.prefix_operations(TINY_TINYGPT.text, n_tokens) == reading - tables


def test_costs_of_the_published_models() -> None:
    """By the sizes in their config.json."""
    llava, tiny = shapes_of(LLAVA_MINI), shapes_of(TINYGPT_V)
    assert llava.costs.text_values == 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096
    assert llava.costs.cache_values == 32 * 2 * 8 * 128
    assert tiny.costs.text_values == 32 * (4 * 2560**2 + 2 * 2560 * 10240) + 51200 * 2560
    assert tiny.costs.cache_values == 32 * 2 * 2560


def test_workloads_of_all_models_fit() -> None:
    for shapes in (*map(shapes_of, sizes()), *(shapes_of(name, quick=True) for name in sizes())):
        workload, text = shapes.workload, shapes.config.text
        assert max(workload.depths) + workload.sweep_tokens <= workload.context <= text.max_context
        assert workload.question_depth in workload.depths
    workload = shapes_of(LLAVA_MINI).workload
    assert (workload.side, workload.prefix_tokens, workload.depths) == (336, 69, (85, 1280, 1952))
    workload = shapes_of(TINYGPT_V).workload
    assert (workload.side, workload.prefix_tokens, workload.depths) == (448, 38, (16, 54, 1280, 1952))


@pytest.mark.parametrize("name", _FAMILIES)
def test_what_llama_cpp_has_no_port_of_is_told_and_pytorch_compared_with(name: str) -> None:
    results = _results(shapes_of(name))
    text = render(results)
    assert f"Not measured: llama.cpp has no port of {results.shapes.title}." in text
    assert targets(results) == [] and "llama.cpp's best" not in text
    assert "| EdgeVLM int4 onnxruntime | 0.5 | 0.516 | 1 | 2 |" in text
    assert shares(results, f"{OURS} int4 onnxruntime")["vision"] == results.shapes.costs.crop_operations / 0.5 / 4e12
    mine = {name: found for name, found in results.figures.items() if name.startswith(OURS)}
    assert "| EdgeVLM int4 onnxruntime | - | - | - | - |" in ratio_table(replace(results, figures=mine))


def _built(shapes: Shapes) -> EagerModel:
    torch.manual_seed(0)
    return eager.build(shapes.config, torch.float32, shapes.workload.prefix_tokens)


def _counted(run: partial[Tensor]) -> int:
    """Operations that torch counts."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):  # the fused one is not counted
        run()
    return int(counter.get_total_flops())


def _head(shapes: Shapes) -> int:
    """Operations of one token's logits."""
    return 2 * shapes.config.text.vocab_size * shapes.config.text.dim


def _one_by_one(read: Callable[[Tensor], Tensor], n_tokens: int) -> int:
    """Operations of reading some tokens, and of a rotary table for each: twice half a head's width."""
    return sum(_counted(partial(read, torch.tensor([[token]]))) for token in range(n_tokens))


def _results(shapes: Shapes) -> Results:
    run = Run(
        first_image_ms=4000.0,
        vision_ms=1000.0,
        prefix_ms=2000.0,
        question_ms=100.0,
        second_question_ms=150.0,
        tokens_per_second=10.0,
        position_bytes=1000.0,
    )
    fast = replace(run, vision_ms=500.0, prefix_ms=1000.0, tokens_per_second=20.0)
    eagers = {each.name: each for each in eager_contestants(shapes)}
    mine = Contestant(
        kind=OURS, variant="int4 onnxruntime", settings="", run=lambda workload: fast, weights_bytes=1_000_000_000
    )
    figures = {mine.name: peer_figures([fast]), **{name: peer_figures([run]) for name in eagers}}
    assert list(eagers) == [f"{EAGER} bfloat16", f"{EAGER} float32"]
    return Results(
        shapes=shapes,
        limits=Limits(bandwidth=50e9, int8=4e12, bfloat16=2e12, float32=1e12),
        contestants={mine.name: mine, **eagers},
        figures=figures,
        absent=(str(absent_llama(shapes)),),
    )
