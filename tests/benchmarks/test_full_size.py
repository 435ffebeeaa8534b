"""What the command makes of an export and of answers, and when it exports again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import full_size
from benchmarks.answering import Answered
from benchmarks.full_models import LLAVA_MINI, OTHERS, TINYGPT_V, FullModel, moondream2
from benchmarks.full_report import Exported, Results, as_json, render
from benchmarks.full_size import export_or_keep, measure_model
from benchmarks.processes import Measured
from benchmarks.random_checkpoint import SIZES
from benchmarks.tables import ROOT, write_section
from edgevlm_export.families.tinygpt_v.random_weights import write_shrunken
from edgevlm_runtime.manifest import FidelityReport

_EXPORTED = Exported(
    weights="random weights",
    seconds=2000.0,
    peak_rss=8_000_000_001,
    seconds_before_verify=1500.0,
    peak_rss_before_verify=6_000_000_000,
)
_FIDELITY = FidelityReport(
    graphs=(), logits_relative_error=0.1, greedy_agreement=0.99, top1_agreement=0.98, kl_divergence=0.01, n_positions=99
)
_ANSWERED = Answered(load_ms=1000.0, first_token_ms=20_000.0, second_question_ms=1500.0, tokens_per_second=2.5)


def test_limits_are_told_with_what_was_reached() -> None:
    text = render(_results(LLAVA_MINI))
    assert "| export, peak RSS | at most 8.0 GB | 8.00 GB | no |" in text
    assert "| bundle | at most 5.8 GB | 5.80 GB | yes |" in text
    assert "| run, peak RSS | at most 7.5 GB | 7.00 GB | yes |" in text
    assert "| LLaVA-Mini, random weights | time | peak RSS |" in text
    assert "| one image | 1.0 s | 20.0 s | 1.50 s | 2.5 | 7.00 GB |" in text
    assert text.endswith("`python -m benchmarks.full_size WORK --model llava-mini`.")


def test_a_model_without_a_limit_has_no_row_for_it() -> None:
    assert "| export, peak RSS |" not in render(_results(TINYGPT_V))
    assert "limit" not in render(_results(moondream2("2b")))


def test_the_largest_run_counts() -> None:
    answered: dict[int | None, Measured[Answered]] = {
        n: Measured(value=_ANSWERED, seconds=1.0, peak_rss=10**9 * n) for n in (1, 12)
    }
    results = replace(_results(moondream2("2b")), answered=answered)
    assert results.run_rss == 12 * 10**9
    assert "| at most 12 local crops |" in render(results)
    written = json.loads(json.dumps(as_json(results)))
    assert written["run"]["12"]["peak_rss"] == 12 * 10**9 and written["export"]["fidelity"]["n_positions"] == 99


def test_every_model_has_its_section_and_its_own_files() -> None:
    models = [*OTHERS.values(), *(moondream2(size) for size in SIZES)]
    assert len({model.bundle_name for model in models}) == len(models)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for model in models:
        assert model.section is None or readme.count(f"<!-- {model.section} -->") == 1


def test_sections_with_the_same_beginning_are_told_apart(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    before = page.read_text(encoding="utf-8")
    write_section("full size llava-mini", "found", page)
    after = page.read_text(encoding="utf-8")
    assert "<!-- full size llava-mini -->\nfound\n<!-- /full size llava-mini -->" in after
    assert after.partition("<!-- full size llava-mini")[0] == before.partition("<!-- full size llava-mini")[0]


def test_kept_only_with_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_exports = 0

    def measure_here(function: object, *arguments: object) -> Measured[Exported]:
        nonlocal n_exports
        if function is full_size.export_model:
            n_exports += 1
        return Measured(value=_EXPORTED, seconds=1.0, peak_rss=1)

    monkeypatch.setattr(full_size, "measure", measure_here)
    checkpoint, out = tmp_path / "mine", tmp_path / TINYGPT_V.bundle_name
    out.mkdir()
    (out / "manifest.json").write_text("{}")

    def kept() -> Exported:
        return export_or_keep(TINYGPT_V, tmp_path, checkpoint, keep=True)

    checkpoint.mkdir()
    assert kept() == _EXPORTED and n_exports == 1, "a bundle without figures is exported"
    assert kept() == _EXPORTED and n_exports == 1
    export_or_keep(TINYGPT_V, tmp_path, checkpoint, keep=False)
    assert n_exports == 2
    (out / "manifest.json").unlink()
    kept()
    assert n_exports == 3


def test_an_export_that_fails_leaves_no_figures(tmp_path: Path) -> None:
    figures = tmp_path / f"{TINYGPT_V.bundle_name}.export.json"
    figures.write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="export_model did not return"):
        export_or_keep(TINYGPT_V, tmp_path, tmp_path / "empty", keep=False)
    assert not figures.exists()


def test_a_shrunken_model_from_its_checkpoint_to_the_tables(tmp_path: Path) -> None:
    tiny = replace(TINYGPT_V, write=write_shrunken)
    results = measure_model(tiny, tmp_path, None, keep=False)
    again = measure_model(tiny, tmp_path, None, keep=True)
    assert again.exported == results.exported and again.bundle_bytes == results.bundle_bytes
    assert 0 < results.exported.seconds_before_verify < results.exported.seconds
    assert results.run_rss < results.exported.peak_rss, "the run does not import what the export does"
    assert "| bundle | at most 2.6 GB | 0.00 GB | yes |" in render(results)
    assert not (tmp_path / "random-tinygpt-v.partial").exists()


def test_the_process_that_answers_does_not_import_torch() -> None:
    """It imports the command's file again, and its memory is what is told."""
    code = "import sys, benchmarks.full_size; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_size_is_moondream2_s_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.full_size", str(tmp_path), "--model", "llava-mini", "--size", "2b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--size is for moondream2 only" in done.stderr


def _results(model: FullModel) -> Results:
    return Results(
        model=model,
        exported=_EXPORTED,
        bundle_bytes=5_800_000_000,
        fidelity=_FIDELITY,
        answered={None: Measured(value=_ANSWERED, seconds=1.0, peak_rss=7_000_000_000)},
    )
