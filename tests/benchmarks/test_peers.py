"""What the comparison makes of its runs: medians, noise that is not published, tables and drawings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import llama, setup
from benchmarks.peers.__main__ import alternate, as_json
from benchmarks.peers.contestants import EAGER, LLAMA, OURS, Contestant
from benchmarks.peers.costs import TokenBytes, crop_operations, prefix_operations, text_values, token_bytes
from benchmarks.peers.figures import figure, noise, peer_figures
from benchmarks.peers.machine import Limits
from benchmarks.peers.plots import draw_first_token, draw_speed
from benchmarks.peers.report import Results, render, shares, targets
from benchmarks.peers.setup import build_environment
from benchmarks.peers.versions import versions
from benchmarks.peers.workload import Run, Workload
from edgevlm_export.families.moondream2.config import SIZE_2B
from edgevlm_export.families.moondream2.random_weights import TINY
from edgevlm_export.modules.moondream2 import Vision

_RUN = Run(
    load_ms=500.0,
    first_image_ms=4000.0,
    vision_ms=1000.0,
    prefix_ms=2000.0,
    question_ms=100.0,
    second_question_ms=150.0,
    tokens_per_second=10.0,
    peak_rss=2_000_000_000,
    depth_tokens_per_second={16: 20.0, 746: 10.0},
)


def test_a_figure_is_a_median_and_the_width_of_the_middle_half() -> None:
    found = figure([10.0, 11.0, 12.0, 13.0, 100.0])
    assert found.median == 12.0
    assert found.spread == pytest.approx((13.0 - 11.0) / 12.0)
    assert figure([5.0]).spread == 0.0


def test_noise_names_the_peer_and_the_figure() -> None:
    quiet = peer_figures([_RUN, replace(_RUN, vision_ms=1100.0), _RUN])
    loud = peer_figures([_RUN, replace(_RUN, tokens_per_second=15.0), replace(_RUN, tokens_per_second=7.0)])
    assert noise({"quiet": quiet}) == []
    assert noise({"quiet": quiet, "loud": loud}) == ["loud: tokens_per_second varies by 40%"]


def test_loading_may_vary() -> None:
    assert noise({"peer": peer_figures([_RUN, replace(_RUN, load_ms=50.0), replace(_RUN, load_ms=5000.0)])}) == []


def test_each_round_begins_with_another_and_who_fails_drops_out() -> None:
    asked: list[tuple[str, int]] = []

    def runner(variant: str, *, fails_at: int | None = None) -> Contestant:
        def run(workload: Workload) -> Run:
            asked.append((variant, workload.seed))
            if workload.seed == fails_at:
                raise RuntimeError("no memory")
            return _RUN

        return replace(_contestant(OURS, variant), run=run)

    found = [runner("a"), runner("b", fails_at=1), runner("c")]
    runs, failed = alternate(found, workload=Workload(), repeats=3)
    assert asked == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1), ("a", 1), ("c", 2), ("a", 2)]
    assert {name: len(done) for name, done in runs.items()} == {"EdgeVLM a": 3, "EdgeVLM c": 3}
    assert failed == ["EdgeVLM b: no memory"]


def test_losses_are_told_as_wins_are() -> None:
    reached = {target.what: (target.got, target.reached) for target in targets(_results())}
    assert reached["decode, tokens/s"] == ("2.00", True)
    assert reached["time to first token, new image"] == ("1.00", False)
    assert reached["peak RSS of a run, int4"] == ("-", None)
    assert reached["second question about an image"] == ("0.15 s, 0.048", True)
    assert reached["load to ready"] == ("0.50 s", True)
    assert "| vision encoder per crop | at most 0.15 of llama.cpp's best | 1.00 | no |" in render(_results())


def test_an_absent_peer_is_told() -> None:
    results = _results()
    alone = {name: found for name, found in results.figures.items() if name.startswith(OURS)}
    text = render(replace(results, figures=alone, absent=("llama-cpp-python is not installed; do this",)))
    assert "Not measured: llama-cpp-python is not installed; do this." in text
    assert "| time to first token, new image | at most 0.30 of llama.cpp's best | - | - |" in text


def test_shares_of_the_machine() -> None:
    got = shares(_results(), "llama.cpp Q4_0")
    assert got["decode"] == pytest.approx((1e9 + 746 * 1000) * 10 / 50e9)
    assert got["vision"] == pytest.approx(crop_operations(SIZE_2B.vision) / 1.0 / 4e12)


def test_operations_of_a_crop_are_those_of_the_module() -> None:
    """torch counts what the real image encoder multiplies."""
    vision = Vision(TINY.vision)
    side = TINY.vision.crop_size
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused one is not counted
        features = vision.encode(torch.zeros(1, 3, side, side))
        vision.project(torch.cat([features, features], -1))
    assert crop_operations(TINY.vision) == counter.get_total_flops()


def test_costs_of_the_published_decoder() -> None:
    assert text_values(SIZE_2B.text) == 24 * (4 * 2048**2 + 2 * 2048 * 8192) + 51200 * 2048
    assert token_bytes(SIZE_2B.text, 0, 2.0).at(730) == 24 * 2 * 730 * 2048 * 2
    assert prefix_operations(SIZE_2B.text, 1) == 2 * 24 * (4 * 2048**2 + 2 * 2048 * 8192 + 2 * 2048)


def test_a_quantized_cache_is_tried_with_flash_attention_only() -> None:
    tried = llama.all_settings()
    assert len(tried) == len(set(tried)) == 6
    assert all(settings.flash or settings.cache == "f16" for settings in tried)


def test_the_best_settings_answer_soonest() -> None:
    speeds = {settings: 10.0 + i for i, settings in enumerate(llama.all_settings())}
    best = llama.best(speeds, lambda settings: replace(_RUN, tokens_per_second=speeds[settings]), 64)
    assert best == llama.all_settings()[-1]


def test_depths_come_back_from_json_as_numbers() -> None:
    fields = {name: getattr(_RUN, name) for name in Run.__dataclass_fields__}
    assert llama.read_run({**fields, "depth_tokens_per_second": {"16": 20.0, "746": 10.0}}) == _RUN


def test_a_missing_peer_is_a_line_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "PYTHON", tmp_path / "python")
    assert setup.missing() == "llama-cpp-python is not installed; python -m benchmarks.peers.setup"
    monkeypatch.setattr(setup, "PYTHON", Path("/bin/false"))
    assert "can not be imported" in str(setup.missing())
    assert setup.PACKAGE not in versions()


def test_gcc_builds_without_amx() -> None:
    assert "-mno-amx" in build_environment(("gcc", "g++"))["CFLAGS"]
    assert build_environment(("clang", "clang++"))["CC"] == "clang"


def test_the_file_has_every_run_and_every_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup, "PYTHON", tmp_path / "python")
    results = _results()
    written = json.loads(json.dumps(as_json(results, {name: [_RUN, _RUN] for name in results.figures})))
    assert [len(peer["runs"]) for peer in written["peers"].values()] == [2, 2, 2, 2]
    assert written["peers"]["EdgeVLM int8"]["figures"]["tokens_per_second"] == {"median": 20.0, "spread": 0.0}
    assert len(written["targets"]) == 7


def test_drawings_have_a_bar_for_each_phase_and_a_line_for_each_peer(tmp_path: Path) -> None:
    figures = _results().figures
    draw_first_token(tmp_path / "bars.svg", figures)
    draw_speed(tmp_path / "lines.svg", figures)
    name = "{http://www.w3.org/2000/svg}"
    bars = ElementTree.parse(tmp_path / "bars.svg").findall(f"{name}rect")
    assert len(bars) == 1 + 3 + 3 * len(figures)
    widths = [float(bar.attrib["width"]) for bar in bars[4:7]]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2) and widths[2] == pytest.approx(widths[0] / 10, abs=0.2)
    assert len(ElementTree.parse(tmp_path / "lines.svg").findall(f"{name}polyline")) == len(figures)


def _contestant(kind: str, variant: str) -> Contestant:
    token = TokenBytes(weights=1_000_000_000, per_position=1000)
    return Contestant(kind=kind, variant=variant, settings="", run=lambda workload: _RUN, token=token)


def _results() -> Results:
    names = [(LLAMA, "Q4_0"), (LLAMA, "Q8_0"), (EAGER, "bfloat16"), (OURS, "int8")]
    contestants = [_contestant(kind, variant) for kind, variant in names]
    figures = {contestant.name: peer_figures([_RUN, _RUN]) for contestant in contestants}
    figures[f"{OURS} int8"] = peer_figures([replace(_RUN, tokens_per_second=20.0)] * 2)
    return Results(
        size="2b",
        config=SIZE_2B,
        workload=Workload(),
        limits=Limits(bandwidth=50e9, int8=4e12, bfloat16=2e12, float32=1e12),
        contestants={contestant.name: contestant for contestant in contestants},
        figures=figures,
        one_image_rss={f"{OURS} int8": 1_500_000_000},
        absent=(),
    )
