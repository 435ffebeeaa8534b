"""The models that are compared: their shapes, their workload, and our bundles of them, exported where missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.workload import Workload, workload_for
from benchmarks.processes import measure
from benchmarks.random_checkpoint import SIZES
from edgevlm.home import BUILT_IN_PATH
from edgevlm_export.families.moondream2.random_weights import write_random
from edgevlm_export.modules.moondream2 import Moondream2Config, RegionConfig, TextConfig, VisionConfig
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.engines import installed_engines
from edgevlm_runtime.manifest import Precision
from training.model import nano_config

QUICK, NANO = "quick", "nano"
# Small in all: every path is gone in a minute or two. The tokenizer's control words need this vocabulary.
_QUICK = Moondream2Config(
    text=TextConfig(
        dim=512, ff_dim=2048, n_layers=2, n_heads=8, n_kv_heads=8, vocab_size=32768, max_context=512, prefix_attn=197
    ),
    vision=VisionConfig(
        enc_dim=288,
        enc_ff_dim=1076,
        enc_n_layers=2,
        enc_n_heads=4,
        crop_size=196,
        proj_inner_dim=1024,
        proj_out_dim=512,
    ),
    region=RegionConfig(dim=512, inner_dim=1024),
)
_CONFIGS = {QUICK: _QUICK, NANO: nano_config(), **SIZES}
_PRECISIONS: tuple[Precision, ...] = ("int8", "int4")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model by name, and what is asked of it."""

    name: str
    config: Moondream2Config
    workload: Workload

    @property
    def title(self) -> str:
        """What tables call it."""
        return {QUICK: "Small", NANO: "nano's"}.get(self.name, f"Moondream2 {self.name.upper()}")


def sizes() -> list[str]:
    """Names of all models but the quick one."""
    return sorted(name for name in _CONFIGS if name != QUICK)


def shapes_of(name: str) -> Shapes:
    """One of `sizes`, or the quick one."""
    config = _CONFIGS[name]
    workload = workload_for(config)
    if name == QUICK:
        workload = replace(workload, answer_tokens=16, sweep_tokens=8, depths=workload.depths[:2])
    return Shapes(name=name, config=config, workload=workload)


def find_bundles(shapes: Shapes, folder: Path) -> list[Path]:
    """The built-in model's bundle, or those in `folder` by precision; what is missing is exported, with IR."""
    if shapes.name == NANO:
        return [BUILT_IN_PATH]
    precisions = _PRECISIONS[:1] if shapes.name == QUICK else _PRECISIONS
    checkpoint = folder / f"random-{shapes.name}"
    bundles = {precision: folder / f"{shapes.name}-{precision}" for precision in precisions}
    for precision, out in bundles.items():
        if not out.exists():
            if not checkpoint.exists():
                write_random(checkpoint, shapes.config)
            measure(export_random, checkpoint, out, precision)
    return list(bundles.values())


def export_random(checkpoint: Path, out: Path, precision: Precision) -> None:
    """Export for both engines, or for the one that is installed."""
    request = ExportRequest(
        name=checkpoint.name,
        family="moondream2",
        source=checkpoint,
        out=out,
        precision=precision,
        openvino="openvino" in installed_engines(),
    )
    export(request)
