"""Image models against timm: latency of eager PyTorch, torch.compile, and bundles on each engine, in turns.

python -m benchmarks.backbones WORK [--models NAME,...] [--turns N] [--seconds S] [--npu] [--export-only]

Checkpoints are random, of full size, in timm's published layout. Two threads, one image a call, preprocessing left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.bars import draw_bars
from benchmarks.processes import measure
from benchmarks.race import Contestant, Timing, race
from benchmarks.tables import RESULTS, ROOT, save, table, write_section
from edgevlm_runtime.manifest import ImageFidelityReport, NpuSpec, Precision
from edgevlm_runtime.records import read_record, write_record

THREADS = 2
MODELS = (
    "tiny_vit_5m_224", "tiny_vit_11m_224", "tiny_vit_21m_224", "tiny_vit_21m_384", "tiny_vit_21m_512",
    "fastvit_t8", "fastvit_t12", "fastvit_s12", "fastvit_sa12", "fastvit_sa24", "fastvit_sa36", "fastvit_ma36",
    "fastvit_mci0", "fastvit_mci1", "fastvit_mci2", "fastvit_mci3", "fastvit_mci4",
)  # fmt: skip
NPU_MODELS = ("fastvit_t8", "fastvit_sa12", "tiny_vit_5m_224")
NPU_TARGET = "hexagon-v75"
EAGER, COMPILED = "PyTorch", "torch.compile"
ENGINES = ("onnxruntime", "openvino")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
MAX_SPREAD = 0.15
_ATTEMPTS = 3
_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle: bytes on disk, how true it is, and what the NPU's simulator found where it was compiled for one."""

    bytes: int
    fidelity: ImageFidelityReport
    npu: NpuSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """All figures of one model; `timings` by contestant."""

    name: str
    bundles: dict[str, Exported]
    timings: dict[str, Timing]

    def speedup(self, precision: Precision) -> float:
        """How many times faster than eager PyTorch, on the better engine."""
        best = min(self.timings[contestant(precision, engine)].median_ms for engine in ENGINES)
        return self.timings[EAGER].median_ms / best


def contestant(precision: Precision, engine: str) -> str:
    """What a bundle on an engine is called in results."""
    return f"{precision} {engine}"


def write_checkpoint(out: Path, variant: str) -> None:
    """A random checkpoint of full size, unless it is there already."""
    if not out.exists():
        from edgevlm_export.families.timm_backbone.random_weights import write_random

        write_random(out, variant)


def export_bundle(checkpoint: Path, out: Path, precision: Precision, npu: str | None) -> Exported:
    """Export with OpenVINO IR, or for an NPU."""
    from edgevlm_export.pipeline import ExportRequest, export

    request = ExportRequest(
        name=checkpoint.name, family="timm_backbone", source=checkpoint, out=out, precision=precision,
        openvino=npu is None, npu=npu, force=True,
    )  # fmt: skip
    manifest = export(request).manifest
    assert manifest.image_fidelity is not None
    return Exported(
        bytes=sum(file.bytes for file in manifest.files.values()), fidelity=manifest.image_fidelity, npu=manifest.npu
    )


def prepare_torch(checkpoint: Path, *, compiled: bool) -> Callable[[], object]:
    """timm's own module, as it is published, on a random image."""
    import torch

    from edgevlm_export.torchvision_operators import declare_missing_operators

    declare_missing_operators()
    import timm
    from safetensors.torch import load_file

    torch.set_num_threads(THREADS)
    config = json.loads((checkpoint / "config.json").read_text())
    module = timm.create_model(
        config["architecture"], num_classes=config["num_classes"], **config.get("model_args", {})
    )
    module.load_state_dict(load_file(checkpoint / "model.safetensors"))
    module.eval()
    run = torch.compile(module) if compiled else module
    image = torch.rand(1, *config["pretrained_cfg"]["input_size"])

    def call() -> object:
        with torch.inference_mode():
            return run(image)

    return call


def prepare_eager(checkpoint: Path) -> Callable[[], object]:
    """See `prepare_torch`."""
    return prepare_torch(checkpoint, compiled=False)


def prepare_compiled(checkpoint: Path) -> Callable[[], object]:
    """See `prepare_torch`."""
    return prepare_torch(checkpoint, compiled=True)


def prepare_bundle(folder: Path, engine: str) -> Callable[[], object]:
    """The bundle's graph on a random image."""
    from edgevlm_runtime.bundle import open_bundle
    from edgevlm_runtime.engines import open_engine
    from edgevlm_runtime.graphs import Graphs
    from edgevlm_runtime.parts import needed

    bundle = open_bundle(folder)
    (role,) = bundle.manifest.graphs
    graph = Graphs(bundle, open_engine(engine, THREADS)).open("classifier" if role == "classifier" else "vision")
    side = needed(bundle.manifest.image, "image").crop_px
    image = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    return lambda: graph.run({"images": image})


def export_all(name: str, work: Path, *, npu: bool) -> dict[str, Exported]:
    """The bundles of one model by precision or target; those that are in `work` already are not made again."""
    notes = work / "exported" / f"{name}.json"
    if notes.exists():
        return {key: read_record(Exported, value, str(notes)) for key, value in json.loads(notes.read_text()).items()}
    checkpoint = checkpoint_folder(name, work)
    measure(write_checkpoint, checkpoint, name)
    bundles = {
        str(precision): measure(export_bundle, checkpoint, bundle_folder(name, work, precision), precision, None).value
        for precision in PRECISIONS
    }
    if npu and name in NPU_MODELS:
        out = bundle_folder(name, work, NPU_TARGET)
        bundles[NPU_TARGET] = measure(export_bundle, checkpoint, out, "int8", NPU_TARGET).value
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text(json.dumps(_plain(bundles)))
    return bundles


def race_backbone(name: str, work: Path, *, turns: int, seconds: float) -> dict[str, Timing]:
    """Time all contestants, again where the machine was too noisy; the quietest attempt counts."""
    checkpoint = checkpoint_folder(name, work)
    contestants = {
        EAGER: Contestant(prepare=prepare_eager, arguments=(checkpoint,)),
        COMPILED: Contestant(prepare=prepare_compiled, arguments=(checkpoint,)),
        **{
            contestant(precision, engine): Contestant(
                prepare=prepare_bundle, arguments=(bundle_folder(name, work, precision), engine)
            )
            for precision in PRECISIONS
            for engine in ENGINES
        },
    }
    attempts: list[dict[str, Timing]] = []
    while len(attempts) < _ATTEMPTS and (not attempts or noise_of(attempts[-1]) > MAX_SPREAD):
        attempts.append(race(contestants, turns=turns, seconds=seconds))
    return min(attempts, key=noise_of)


def noise_of(timings: Mapping[str, Timing]) -> float:
    """The largest spread of a contestant."""
    return max(timing.spread for timing in timings.values())


def checkpoint_folder(name: str, work: Path) -> Path:
    """Where a model's random checkpoint lies."""
    return work / "checkpoints" / name


def bundle_folder(name: str, work: Path, kind: str) -> Path:
    """Where a model's bundle of a precision or target lies."""
    return work / "bundles" / f"{name}-{kind}"


def latency_table(backbones: Iterable[Backbone]) -> str:
    """Milliseconds of one image by contestant, and both ratios to eager PyTorch."""
    names = [EAGER, COMPILED, *(contestant(precision, engine) for precision in PRECISIONS for engine in ENGINES)]
    rows = [
        [
            backbone.name,
            *(f"{backbone.timings[name].median_ms:.1f}" for name in names),
            f"{backbone.speedup('fp32'):.1f}x",
            f"{backbone.speedup('int8'):.1f}x",
        ]
        for backbone in backbones
    ]
    return table(["ms an image", *names, "float32 / eager", "int8 / eager"], rows)


def bundle_table(backbones: Iterable[Backbone]) -> str:
    """Bundle sizes, peak memory, nodes and fidelity."""
    rows = []
    for backbone in backbones:
        int8 = backbone.bundles["int8"]
        fold = next(iter(int8.fidelity.folds.values()), None)
        npu = next((each.npu for each in backbone.bundles.values() if each.npu is not None), None)
        rows.append(
            [
                backbone.name,
                " / ".join(f"{backbone.bundles[str(precision)].bytes / _MB:.1f}" for precision in PRECISIONS),
                " / ".join(
                    f"{backbone.timings[name].peak_rss / _MB:.0f}"
                    for name in (EAGER, "fp32 onnxruntime", "int8 onnxruntime")
                ),
                f"{fold.nodes_before} -> {fold.nodes_after}" if fold else "",
                f"{fold.relative_error:.0e}" if fold else "",
                f"{int8.fidelity.graphs[0].cosine:.4f}",
                f"{npu.cosine:.4f}" if npu else "",
            ]
        )
    header = ["", "bundle MB, float32 / int8 (with IR)", "peak MB, eager / float32 / int8", "nodes", "folding changed",
              "int8 cosine", f"{NPU_TARGET} cosine"]  # fmt: skip
    return table(header, rows)


def publish(measured: Sequence[Backbone]) -> None:
    """Add models to the results, then write the plot and the README's section of all that are there."""
    results = RESULTS / "backbones.json"
    known = json.loads(results.read_text())["models"] if results.exists() else {}
    known |= {each.name: write_record(each) for each in measured}
    ordered = {name: known[name] for name in MODELS if name in known}
    save("backbones", {"threads": THREADS, "models": ordered})
    backbones = [read_record(Backbone, record, str(results)) for record in ordered.values()]
    series = [EAGER, COMPILED, "fp32 openvino", "int8 openvino", "fp32 onnxruntime", "int8 onnxruntime"]
    speeds = {
        each.name: {name: each.timings[EAGER].median_ms / each.timings[name].median_ms for name in series}
        for each in backbones
    }
    plot = RESULTS / "backbones.svg"
    draw_bars(plot, "Times as fast as eager PyTorch, one image, 2 threads", speeds, series)
    noise = max(noise_of(each.timings) for each in backbones)
    text = (
        f"{latency_table(backbones)}\n\n{bundle_table(backbones)}\n\n"
        f"![times as fast as eager PyTorch]({plot.relative_to(ROOT).as_posix()})\n\n"
        f"Random weights of full size, {THREADS} threads, the contestants of a model in turns; the widest spread of a "
        f"figure was {noise:.0%}. `python -m benchmarks.backbones WORK --npu`."
    )
    write_section("backbones", text)


def _plain(records: Mapping[str, Exported]) -> dict[str, object]:
    return {name: write_record(record) for name, record in records.items()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="keeps checkpoints and bundles, which are not made again")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated; others keep their figures")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--npu", action="store_true", help="also compile for an NPU and simulate it")
    parser.add_argument("--export-only", action="store_true")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    bundles = {name: export_all(name, arguments.work, npu=arguments.npu) for name in names}
    if arguments.export_only:
        return
    backbones = []
    for name in names:
        timings = race_backbone(name, arguments.work, turns=arguments.turns, seconds=arguments.seconds)
        backbones.append(Backbone(name=name, bundles=bundles[name], timings=timings))
        print(f"{latency_table(backbones[-1:])}\n{bundle_table(backbones[-1:])}", file=sys.stderr, flush=True)
    publish([each for each in backbones if noise_of(each.timings) <= MAX_SPREAD])
    if noisy := [each.name for each in backbones if noise_of(each.timings) > MAX_SPREAD]:
        sys.exit(f"the machine was too noisy for {', '.join(noisy)} (spread above {MAX_SPREAD:.0%}): not published")


if __name__ == "__main__":
    main()
