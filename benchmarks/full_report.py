"""What a full-size model took, as the README's tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from benchmarks.answering import Answered
from benchmarks.full_models import FullModel, Limits
from benchmarks.processes import Measured
from benchmarks.tables import table
from edgevlm_runtime.manifest import FidelityReport
from edgevlm_runtime.records import write_record

_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export took, all of it and until verification began, and whose `weights` they are."""

    weights: str
    seconds: float
    peak_rss: int
    seconds_before_verify: float
    peak_rss_before_verify: int


@dataclass(frozen=True, kw_only=True)
class Results:
    """A model's figures; `answered` by how many crops were allowed, None for the model's own limit."""

    model: FullModel
    exported: Exported
    bundle_bytes: int
    fidelity: FidelityReport
    answered: dict[int | None, Measured[Answered]]

    @property
    def run_rss(self) -> int:
        """The most that a run took."""
        return max(run.peak_rss for run in self.answered.values())


def render(results: Results) -> str:
    """The README's tables."""
    model, exported = results.model, results.exported
    export_rows = [
        [
            f"export to {model.precision}, before verification",
            f"{exported.seconds_before_verify:.0f} s",
            _gb(exported.peak_rss_before_verify),
        ],
        [f"export to {model.precision}, with verification", f"{exported.seconds:.0f} s", _gb(exported.peak_rss)],
    ]
    parts = [
        table([f"{model.title}, {exported.weights}", "time", "peak RSS"], export_rows),
        table(
            ["run, 640 x 480", "load", "first token", "second question", "tokens/s", "peak RSS"],
            [_run_row(n_crops, run) for n_crops, run in results.answered.items()],
        ),
        f"The bundle has {_gb(results.bundle_bytes)}. {_agreement(results.fidelity)} "
        f"`python -m benchmarks.full_size WORK{model.options}`.",
    ]
    if model.limits is not None:
        parts.insert(2, table(["limit", "wanted", "measured", ""], list(_limit_rows(results, model.limits))))
    return "\n\n".join(parts)


def as_json(results: Results) -> dict[str, object]:
    """All figures."""
    exported = write_record(results.exported)
    return {
        "weights": exported.pop("weights"),
        "export": {**exported, "fidelity": write_record(results.fidelity)},
        "bundle_bytes": results.bundle_bytes,
        "run": {
            "own limit" if n_crops is None else n_crops: {"peak_rss": run.peak_rss, **asdict(run.value)}
            for n_crops, run in results.answered.items()
        },
        **({} if results.model.limits is None else {"limits": write_record(results.model.limits)}),
    }


def _run_row(n_crops: int | None, run: Measured[Answered]) -> list[str]:
    return [
        "one image" if n_crops is None else f"at most {n_crops} local crops",
        f"{run.value.load_ms / 1e3:.1f} s",
        f"{run.value.first_token_ms / 1e3:.1f} s",
        f"{run.value.second_question_ms / 1e3:.2f} s",
        f"{run.value.tokens_per_second:.1f}",
        _gb(run.peak_rss),
    ]


def _limit_rows(results: Results, limits: Limits) -> Iterator[list[str]]:
    compared = (
        ("export, peak RSS", limits.export_rss, results.exported.peak_rss),
        ("bundle", limits.bundle, results.bundle_bytes),
        ("run, peak RSS", limits.run_rss, results.run_rss),
    )
    for what, limit, got in compared:
        if limit is not None:
            yield [what, f"at most {limit / _GB:.1f} GB", _gb(got), "yes" if got <= limit else "no"]


def _agreement(fidelity: FidelityReport) -> str:
    return (
        f"Against the original in float32 at {fidelity.n_positions} positions: greedy tokens "
        f"{fidelity.greedy_agreement:.1%}, top-1 {fidelity.top1_agreement:.1%}, "
        f"KL divergence {fidelity.kl_divergence:.5f} nats."
    )


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / _GB:.2f} GB"
