"""Export and run a full-size model, and what both take: seconds, memory, disk. Without a checkpoint, a random one.

python -m benchmarks.full_size WORK [--size 2b|0.5b] [--checkpoint DIR]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.answering import Answered, answer
from benchmarks.processes import Measured, measure, peak_rss
from benchmarks.random_checkpoint import SIZES
from benchmarks.tables import save, table, write_section
from edgevlm_export.families.moondream2.random_weights import write_random
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_export.scene import draw_image
from edgevlm_runtime.manifest import FidelityReport
from edgevlm_runtime.records import write_record

_CROPS = (1, 12)
_GB = 1e9


@dataclass(kw_only=True)
class Steps:
    """Progress of an export that notes when each step begins, and the peak memory until then."""

    begun: float = field(default_factory=time.perf_counter)
    seen: dict[str, tuple[float, int]] = field(default_factory=dict)

    def start(self, step: str, total: int | None = None) -> None:
        """Note a step's beginning."""
        self.seen[step] = (time.perf_counter() - self.begun, peak_rss())
        print(f"{self.seen[step][0]:7.1f} s  {step}", file=sys.stderr)

    def advance(self) -> None:
        """Parts of a step are not measured."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The export until verification began, and what that found."""

    seconds_before_verify: float
    peak_rss_before_verify: int
    fidelity: FidelityReport


def export_int8(checkpoint: Path, out: Path) -> Exported:
    """Export, step by step on stderr."""
    steps = Steps()
    request = ExportRequest(
        name="full-size", family="moondream2", source=checkpoint, out=out, precision="int8", force=True
    )
    bundle = export(request, steps)
    seconds, peak = steps.seen["verify"]
    assert bundle.manifest.fidelity is not None
    return Exported(seconds_before_verify=seconds, peak_rss_before_verify=peak, fidelity=bundle.manifest.fidelity)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the checkpoint and the bundle, 6 GB for the 2B model")
    parser.add_argument("--size", choices=sorted(SIZES), default="2b")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint to use instead of a random one")
    options = parser.parse_args()
    checkpoint: Path = options.checkpoint or options.work / f"random-{options.size}"
    if not checkpoint.exists():
        write_random(checkpoint, SIZES[options.size])
    out = options.work / f"{options.size}-int8"
    exported = measure(export_int8, checkpoint, out)
    n_bytes = sum(file.stat().st_size for file in out.iterdir())
    answered = {n_crops: measure(answer, out, draw_image(), n_crops) for n_crops in _CROPS}
    save(f"full_size_{options.size}", _result(exported, n_bytes, answered))
    text = render(options.size, exported, n_bytes, answered)
    if options.size == "2b":
        write_section("full size", text)
    print(text)


def render(size: str, exported: Measured[Exported], n_bytes: int, answered: dict[int, Measured[Answered]]) -> str:
    """The README's tables."""
    before = exported.value
    export_rows = [
        [
            "export to int8, before verification",
            f"{before.seconds_before_verify:.0f} s",
            _gb(before.peak_rss_before_verify),
        ],
        ["export to int8, with verification", f"{exported.seconds:.0f} s", _gb(exported.peak_rss)],
    ]
    run_rows = [
        [
            f"at most {n_crops} local crops",
            f"{run.value.load_ms / 1e3:.1f} s",
            f"{run.value.first_token_ms / 1e3:.1f} s",
            f"{run.value.second_question_ms / 1e3:.2f} s",
            f"{run.value.tokens_per_second:.1f}",
            _gb(run.peak_rss),
        ]
        for n_crops, run in answered.items()
    ]
    return "\n\n".join(
        (
            table([f"Moondream2 {size.upper()}, random weights", "time", "peak RSS"], export_rows),
            table(["run, 640 x 480", "load", "first token", "second question", "tokens/s", "peak RSS"], run_rows),
            f"The bundle has {n_bytes / _GB:.2f} GB. {_agreement(exported.value.fidelity)} "
            "`python -m benchmarks.full_size WORK`.",
        )
    )


def _agreement(fidelity: FidelityReport) -> str:
    return (
        f"Against the original in float32 at {fidelity.n_positions} positions: greedy tokens "
        f"{fidelity.greedy_agreement:.1%}, top-1 {fidelity.top1_agreement:.1%}, "
        f"KL divergence {fidelity.kl_divergence:.5f} nats."
    )


def _result(exported: Measured[Exported], n_bytes: int, answered: dict[int, Measured[Answered]]) -> dict[str, object]:
    return {
        "export": {
            "seconds": exported.seconds,
            "peak_rss": exported.peak_rss,
            "seconds_before_verify": exported.value.seconds_before_verify,
            "peak_rss_before_verify": exported.value.peak_rss_before_verify,
            "fidelity": write_record(exported.value.fidelity),
        },
        "bundle_bytes": n_bytes,
        "run": {n_crops: {"peak_rss": run.peak_rss, **asdict(run.value)} for n_crops, run in answered.items()},
    }


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / _GB:.2f} GB"


if __name__ == "__main__":
    main()
