"""What the comparison makes of its runs: medians, noise that is not published, tables and drawings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import tables
from benchmarks.peers import llama, ours, publish, setup
from benchmarks.peers.__main__ import Asking
from benchmarks.peers.contestants import EAGER, LLAMA, OURS, Contestant, engines_for, our_contestants
from benchmarks.peers.costs import cache_values, text_values
from benchmarks.peers.figures import figure, is_noisy, noise, peer_figures, too_few
from benchmarks.peers.journal import Journal
from benchmarks.peers.machine import Limits
from benchmarks.peers.models import LLAVA_MINI, NANO, TINYGPT_V, shapes_of
from benchmarks.peers.moondream2 import crop_operations, prefix_operations
from benchmarks.peers.plots import draw_first_token, draw_speed
from benchmarks.peers.random_gguf import possible_quantizations
from benchmarks.peers.report import Results, render, shares, target_table, targets
from benchmarks.peers.rounds import Rounds, alternate
from benchmarks.peers.setup import build_environment
from benchmarks.peers.versions import versions
from benchmarks.peers.workload import Run, Workload, read_run
from benchmarks.tables import duration
from edgevlm.home import BUILT_IN_PATH
from edgevlm_export.families.moondream2.config import SIZE_2B
from edgevlm_export.families.moondream2.random_weights import TINY
from edgevlm_export.modules.moondream2 import Vision
from edgevlm_runtime.bundle import open_bundle
from training.model import nano_config

_RUN = Run(
    load_ms=500.0,
    first_image_ms=4000.0,
    vision_ms=1000.0,
    prefix_ms=2000.0,
    question_ms=100.0,
    second_question_ms=150.0,
    tokens_per_second=10.0,
    position_bytes=1000.0,
    peak_rss=2_000_000_000,
    restart_ms=700.0,
    one_image_rss=1_500_000_000,
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


def test_what_a_peer_does_not_have_is_no_figure() -> None:
    found = peer_figures([replace(_RUN, load_ms=None, depth_tokens_per_second={}), replace(_RUN, load_ms=None)])
    assert found.get("load_ms") is None and found["first_token_ms"].median == 3100.0
    assert found.speed_by_depth[16].median == 20.0


def test_each_round_begins_with_another_and_who_fails_drops_out() -> None:
    asked: list[tuple[str, int]] = []

    def ask(contestant: Contestant, workload: Workload) -> Run:
        asked.append((contestant.variant, workload.seed))
        if (contestant.variant, workload.seed) == ("b", 1):
            raise RuntimeError("no memory")
        return _RUN

    found = [_contestant(OURS, variant) for variant in "abc"]
    done = alternate(found, ask, Workload(), Rounds(repeats=3))
    assert asked == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1), ("a", 1), ("c", 2), ("a", 2)]
    assert {name: len(runs) for name, runs in done.runs.items()} == {"EdgeVLM a": 3, "EdgeVLM c": 3}
    assert list(done.failed.values()) == ["EdgeVLM b: no memory"]


def test_slow_peers_are_asked_less_and_depths_only_at_first() -> None:
    asked: list[tuple[str, bool]] = []

    def ask(contestant: Contestant, workload: Workload) -> Run:
        asked.append((contestant.variant, workload.full))
        return _RUN

    found = [_contestant(OURS, "a"), replace(_contestant(EAGER, "slow"), slow=True)]
    alternate(found, ask, Workload(), Rounds(repeats=5, slow=2))
    assert [full for who, full in asked if who == "a"] == [True, True, True, False, False]
    assert [who for who, _ in asked].count("slow") == 2


def test_noisy_peers_are_asked_again_until_they_are_quiet_or_time_is_over() -> None:
    speeds = {"steady": [10.0] * 9, "calms": [10.0, 20.0, 10.0, 10.0, 10.0], "wild": [10.0, 20.0] * 4}

    def ask(contestant: Contestant, workload: Workload) -> Run:
        return replace(_RUN, tokens_per_second=speeds[contestant.variant].pop(0))

    done = alternate([_contestant(OURS, name) for name in speeds], ask, Workload(), Rounds(repeats=3, more=4))
    assert {name: len(runs) for name, runs in done.runs.items()} == {
        "EdgeVLM steady": 3, "EdgeVLM calms": 5, "EdgeVLM wild": 7
    }  # fmt: skip
    assert [name for name, runs in done.runs.items() if is_noisy(runs)] == ["EdgeVLM wild"]


def test_two_runs_are_too_few() -> None:
    assert too_few({"a": [_RUN] * 3, "b": [_RUN] * 2}) == ["b: 2 runs where 3 are needed"]


def test_a_journal_gives_back_only_what_is_exactly_the_same(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    n_runs = 0

    def run(workload: Workload) -> Run:
        nonlocal n_runs
        n_runs += 1
        return _RUN

    contestant = replace(_contestant(OURS, "int8"), run=run, files={"bundle": "abc"})
    ask = Asking(Journal(path, {"versions": 1}, resume=False))
    assert ask(contestant, Workload()) == _RUN and n_runs == 1
    with path.open("a") as file:
        file.write('{"about": {"pe')  # killed while it wrote
    ask = Asking(Journal(path, {"versions": 1}, resume=True))
    assert ask(contestant, Workload()) == _RUN and n_runs == 1
    ask(contestant, Workload(seed=1))
    assert n_runs == 2
    again = Journal(path, {"versions": 1}, resume=True)
    assert Asking(again)(contestant, Workload(seed=1)) == _RUN and n_runs == 2
    Asking(again)(replace(contestant, files={"bundle": "other"}), Workload())
    Asking(Journal(path, {"versions": 2}, resume=True))(contestant, Workload())
    assert n_runs == 4
    Asking(Journal(path, {"versions": 1}, resume=False))(contestant, Workload())
    assert n_runs == 5


def test_losses_are_told_as_wins_are() -> None:
    reached = {target.what: (target.got, target.reached) for target in targets(_results())}
    assert reached["decode, tokens/s"] == ("2.00", True)
    assert reached["time to first token, new image"] == ("1.00", False)
    assert reached["peak RSS with one image, int4"] == ("-", None)
    assert reached["second question about an image"] == ("150 ms, 0.048", True)
    assert reached["load to ready"] == ("500 ms", True)
    table = target_table(_results())
    assert "| EdgeVLM int8 openvino (auto) | best of EdgeVLM | which |" in table
    assert (
        "| vision encoder per crop | at most 0.15 of llama.cpp's best | 1.00: no | 0.50: no | int8 onnxruntime |"
        in table
    )


@pytest.mark.parametrize(("ms", "text"), [(1.0624, "1.06 ms"), (999.4, "999 ms"), (999.6, "1 s"), (14_530.0, "14.5 s")])
def test_times_are_told_in_three_digits(ms: float, text: str) -> None:
    assert duration(ms) == text


def test_memory_is_compared_with_both_of_llama_cpp_s_ways() -> None:
    results = _results()
    name = f"{OURS} int4 onnxruntime"
    mine = replace(results.contestants[f"{OURS} int8 openvino"], variant="int4 onnxruntime")
    figures = {**results.figures, name: peer_figures([replace(_RUN, one_image_rss=1_000_000_000)])}
    more = replace(results, contestants={**results.contestants, name: mine}, figures=figures)
    assert [(t.got, t.reached) for t in targets(more) if "Q4_0" in t.wanted] == [("0.50", True), ("0.67", False)]


def test_a_second_question_is_compared_with_the_same_pair_s_first() -> None:
    """A pair that is slow at first must not hide behind another's second question."""
    results = _results()
    slow = replace(_RUN, second_question_ms=200.0, vision_ms=20_000.0)
    figures = {**results.figures, f"{OURS} int8 onnxruntime": peer_figures([slow, slow])}
    (second,) = (t for t in targets(replace(results, figures=figures)) if t.what.startswith("second"))
    assert (second.who, second.got) == ("int8 openvino", "150 ms, 0.048")


def test_an_absent_peer_is_told() -> None:
    results = _results()
    alone = {name: found for name, found in results.figures.items() if name.startswith(OURS)}
    text = render(replace(results, figures=alone, absent=("llama-cpp-python is not installed; do this",)))
    assert "Not measured: llama-cpp-python is not installed; do this." in text
    assert "| time to first token, new image | at most 0.30 of llama.cpp's best | - | - | - |" in text


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
    assert cache_values(SIZE_2B.text) == 24 * 2 * 2048
    assert prefix_operations(SIZE_2B.text, 1) == 2 * 24 * (4 * 2048**2 + 2 * 2048 * 8192 + 2 * 2048)


def test_a_quantized_cache_is_tried_with_flash_attention_only() -> None:
    tried = llama.all_settings()
    assert len(tried) == len(set(tried)) == 6
    assert all(settings.flash or settings.cache == "f16" for settings in tried)


def test_the_best_settings_answer_soonest_and_see_soonest() -> None:
    def run(settings: llama.Settings) -> Run:
        fast = (settings.cache, settings.ubatch) == ("q8_0", 512)
        sees = (settings.vision, settings.vision_flash) == ("f16", False)
        return replace(_RUN, tokens_per_second=20.0 if fast else 10.0, vision_ms=900.0 if sees else 1000.0)

    best = llama.best(llama.all_settings(), run, 64)
    assert best == llama.Settings(cache="q8_0", ubatch=512, vision="f16", vision_flash=False)


def test_all_that_can_be_chosen_for_vision_is_tried() -> None:
    assert len({(settings.vision, settings.vision_flash) for settings in llama.all_settings()}) == 4


def test_settings_that_fail_are_not_chosen() -> None:
    def fails(settings: llama.Settings) -> Run:
        if settings.cache == "f16":
            raise RuntimeError("no memory")
        return _RUN

    assert llama.best(llama.all_settings(), fails, 64).cache == "q8_0"
    assert llama.best(llama.all_settings()[-1:], fails, 64) == llama.Settings()


def test_depths_come_back_from_json_as_numbers() -> None:
    fields = {name: getattr(_RUN, name) for name in Run.__dataclass_fields__}
    assert read_run({**fields, "depth_tokens_per_second": {"16": 20.0, "746": 10.0}}) == _RUN


def test_formats_that_do_not_divide_the_rows_are_left_out() -> None:
    assert possible_quantizations(SIZE_2B.text) == ("Q4_0", "Q8_0", "Q4_K_M")
    assert possible_quantizations(nano_config().text) == ("Q4_0", "Q8_0")


def test_workloads_fit_their_models() -> None:
    assert shapes_of("2b").workload == Workload()
    nano = shapes_of(NANO).workload
    assert (nano.side, nano.prefix_tokens, nano.context) == (96, 145, 512)
    assert max(nano.depths) + nano.sweep_tokens <= nano.context


def test_a_bundle_runs_on_what_it_is_made_for() -> None:
    manifest = open_bundle(BUILT_IN_PATH).manifest
    assert engines_for(manifest) == ["onnxruntime"]
    graphs = {role: replace(graph, compiled={"openvino": "x.xml"}) for role, graph in manifest.graphs.items()}
    assert engines_for(replace(manifest, graphs=graphs)) == ["onnxruntime", "openvino", "mixed"]
    (only,) = our_contestants([BUILT_IN_PATH], None)
    assert only.label == "EdgeVLM int8 onnxruntime (auto)"
    assert only.weights_bytes == sum(file.stat().st_size for file in BUILT_IN_PATH.glob("decoder.onnx*"))


def test_the_built_in_model_under_its_workload() -> None:
    """Processes, caches, depths: nothing is left out, and what is kept of an image is found after a restart."""
    workload = replace(shapes_of(NANO).workload, answer_tokens=8, depths=(16, 161), sweep_tokens=4)
    run = ours.run(BUILT_IN_PATH, "onnxruntime", workload)
    cache = open_bundle(BUILT_IN_PATH).manifest.cache
    assert cache is not None
    bytes_per_value = {"float32": 4, "float16": 2, "int8": 1}[cache.dtype]
    assert run.position_bytes == cache_values(shapes_of(NANO).config.text) * bytes_per_value
    assert set(run.depth_tokens_per_second) == {16, 161}
    assert run.peak_rss is not None and run.one_image_rss is not None and run.restart_ms is not None
    assert 0 < run.restart_ms < run.first_token_ms


def test_what_is_measured_does_not_import_torch() -> None:
    """It would count as EdgeVLM's memory."""
    code = "import sys, benchmarks.peers.ours; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    kept = publish.keep(results, {name: [_RUN, _RUN] for name in results.figures}, tmp_path)
    written = json.loads(kept.read_text())
    assert [len(peer["runs"]) for peer in written["peers"].values()] == [2] * len(results.figures)
    assert written["peers"]["EdgeVLM int8 openvino"]["figures"]["tokens_per_second"] == {"median": 10.0, "spread": 0.0}
    assert len(written["targets"]) == 8
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".svg", ".svg"]


@pytest.mark.parametrize(
    ("size", "page"),
    [("2b", "README.md"), *((size, "benchmarks/README.md") for size in ("0.5b", NANO, LLAVA_MINI, TINYGPT_V))],
)
def test_each_model_has_its_section(size: str, page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup, "PYTHON", tmp_path / "python")
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    root = Path(publish.__file__).parents[2]
    (tmp_path / page).write_text((root / page).read_text())
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "RESULTS", folder)
    monkeypatch.setattr(tables, "RESULTS", folder)
    results = replace(_results(), shapes=shapes_of(size))
    publish.publish(results, {name: [_RUN] * 3 for name in results.figures})
    text = (tmp_path / page).read_text()
    mark = "peers" if size == "2b" else f"peers {size}"
    section = text.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0]
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", section)
    assert len(pictures) == 2 and all((tmp_path / page).parent.joinpath(picture).exists() for picture in pictures)
    assert "| EdgeVLM int8 openvino (auto) |" in section


def test_drawings_have_a_bar_for_each_phase_and_a_line_for_each_peer(tmp_path: Path) -> None:
    figures = _results().labeled()
    draw_first_token(tmp_path / "bars.svg", "2B", figures)
    draw_speed(tmp_path / "lines.svg", "2B", figures)
    name = "{http://www.w3.org/2000/svg}"
    bars = ElementTree.parse(tmp_path / "bars.svg").findall(f"{name}rect")
    assert len(bars) == 1 + 3 + 3 * len(figures)
    widths = [float(bar.attrib["width"]) for bar in bars[7:10]]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2) and widths[2] == pytest.approx(widths[0] / 10, abs=0.2)
    lines = ElementTree.parse(tmp_path / "lines.svg")
    assert len(lines.findall(f"{name}polyline")) == len(figures)
    styles = {(line.attrib["stroke"], line.attrib["stroke-dasharray"]) for line in lines.findall(f"{name}polyline")}
    assert len(styles) == len(figures)
    heights = [float(text.attrib["y"]) for text in lines.findall(f"{name}text") if text.text in figures]
    assert len(heights) == len(figures) and min(b - a for a, b in pairwise(heights)) > 12


def _contestant(kind: str, variant: str) -> Contestant:
    return Contestant(kind=kind, variant=variant, settings="", run=lambda workload: _RUN, weights_bytes=1_000_000_000)


def _results() -> Results:
    names = [
        (OURS, "int8 onnxruntime"), (OURS, "int8 openvino"), (LLAMA, "Q4_0"), (LLAMA, "Q8_0"), (EAGER, "bfloat16")
    ]  # fmt: skip
    contestants = {f"{kind} {variant}": _contestant(kind, variant) for kind, variant in names}
    default = f"{OURS} int8 openvino"
    contestants[default] = replace(contestants[default], is_default=True)
    figures = {name: peer_figures([_RUN, _RUN]) for name in contestants}
    fast = replace(_RUN, tokens_per_second=20.0, vision_ms=500.0, prefix_ms=2500.0, second_question_ms=160.0)
    figures[f"{OURS} int8 onnxruntime"] = peer_figures([fast] * 2)
    return Results(
        shapes=shapes_of("2b"),
        limits=Limits(bandwidth=50e9, int8=4e12, bfloat16=2e12, float32=1e12),
        contestants=contestants,
        figures=figures,
        absent=(),
    )
