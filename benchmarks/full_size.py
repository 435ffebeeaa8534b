"""Export and run a full-size model, and what both take: seconds, memory, disk. Without a checkpoint, a random one.

python -m benchmarks.full_size WORK [--size 2b|0.5b] [--checkpoint DIR] [--keep]
python -m benchmarks.full_size WORK --model llava-mini|tinygpt-v [--checkpoint DIR] [--keep]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.answering import answer
from benchmarks.full_models import DEFAULT_SIZE, MOONDREAM2, MOONDREAM2_SIZES, OTHERS, FullModel, moondream2
from benchmarks.full_report import Exported, Results, as_json, render
from benchmarks.processes import measure, peak_rss
from benchmarks.tables import save, write_section
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.parts import needed
from edgevlm_runtime.records import read_record, write_record

# Torch is imported only where it is needed: a process that answers imports this file again, and its memory is measured.


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


def export_model(model: FullModel, checkpoint: Path, out: Path, weights: str) -> Exported:
    """Export, step by step on stderr; in a process that did nothing else before."""
    from edgevlm_export.pipeline import ExportRequest, export

    steps = Steps()
    request = ExportRequest(
        name="full-size",
        family=model.family,
        source=checkpoint,
        out=out,
        precision=model.precision,
        stage=model.stage,
        force=True,
    )
    export(request, steps)
    seconds, peak = steps.seen["verify"]
    return Exported(
        weights=weights,
        seconds=time.perf_counter() - steps.begun,
        peak_rss=peak_rss(),
        seconds_before_verify=seconds,
        peak_rss_before_verify=peak,
    )


def export_or_keep(model: FullModel, work: Path, checkpoint: Path | None, *, keep: bool) -> Exported:
    """What the export took: `keep` takes the bundle and the figures that are in `work`, where both are."""
    out = work / model.bundle_name
    figures = work / f"{model.bundle_name}.export.json"
    if keep and figures.exists() and (out / "manifest.json").exists():
        return read_record(Exported, json.loads(figures.read_text(encoding="utf-8")), str(figures))
    figures.unlink(missing_ok=True)  # they would be those of another bundle once the export is done
    source = checkpoint or random_checkpoint(model, work)
    weights = "random weights" if checkpoint is None else f"weights of {checkpoint.resolve().name}"
    exported = measure(export_model, model, source, out, weights).value
    figures.write_text(json.dumps(write_record(exported), indent=2) + "\n", encoding="utf-8")
    return exported


def random_checkpoint(model: FullModel, work: Path) -> Path:
    """A random checkpoint in `work`, written where it is not there yet."""
    folder = work / f"random-{model.name}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")  # one that is cut short must not count as there
        measure(write_checkpoint, model, partial)
        partial.rename(folder)
    return folder


def write_checkpoint(model: FullModel, out: Path) -> None:
    """`FullModel.write`, in a process of its own."""
    model.write(out)


def measure_model(model: FullModel, work: Path, checkpoint: Path | None, *, keep: bool) -> Results:
    """Export where needed, and ask."""
    exported = export_or_keep(model, work, checkpoint, keep=keep)
    out = work / model.bundle_name
    image = measure(draw).value
    return Results(
        model=model,
        exported=exported,
        bundle_bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        fidelity=needed(open_bundle(out, check=False).manifest.fidelity, "fidelity"),
        answered={n_crops: measure(answer, out, image, n_crops) for n_crops in model.max_crops},
    )


def draw() -> bytes:
    """The image that is asked about, a PNG of 640 x 480 pixels."""
    from edgevlm_export.scene import draw_image

    return draw_image()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the checkpoint and the bundle: 6 GB for Moondream2 2B")
    parser.add_argument("--model", choices=(MOONDREAM2, *OTHERS), default=MOONDREAM2)
    parser.add_argument("--size", choices=MOONDREAM2_SIZES, help=f"of {MOONDREAM2}, {DEFAULT_SIZE} by default")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint to use instead of a random one")
    parser.add_argument("--keep", action="store_true", help="do not export again what WORK has with its figures")
    options = parser.parse_args()
    if options.size is not None and options.model != MOONDREAM2:
        parser.error(f"--size is for {MOONDREAM2} only; {options.model} has one size")
    model = OTHERS.get(options.model) or moondream2(options.size or DEFAULT_SIZE)
    options.work.mkdir(parents=True, exist_ok=True)
    results = measure_model(model, options.work, options.checkpoint, keep=options.keep)
    save(f"full_size_{model.name}", as_json(results))
    text = render(results)
    if model.section is not None:
        write_section(model.section, text)
    print(text)


if __name__ == "__main__":
    main()
