"""The models that are compared, by name, and our bundles of them, exported where missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.peers import llava_mini, moondream2, tinygpt_v
from benchmarks.peers.shapes import Shapes
from benchmarks.processes import measure
from benchmarks.random_checkpoint import SIZES
from edgevlm.home import BUILT_IN_PATH
from edgevlm_export.families.llava_mini import random_weights as llava_mini_sizes
from edgevlm_export.families.tinygpt_v import random_weights as tinygpt_v_sizes
from edgevlm_export.modules.moondream2 import Moondream2Config, RegionConfig, TextConfig, VisionConfig
from edgevlm_export.modules.tinygpt_v import TinyGptVConfig
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.engines import installed_engines
from edgevlm_runtime.manifest import Precision
from training.model import nano_config

NANO, LLAVA_MINI, TINYGPT_V = "nano", "llava-mini", "tinygpt-v"
_NANO_TIMES = 15
# Small in all: every path is gone in a minute or two. The tokenizer's control words need this vocabulary.
_SMALL_MOONDREAM2 = Moondream2Config(
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


def _nano_shapes() -> Shapes:
    shapes = moondream2.shapes(NANO, "nano's", nano_config())
    return replace(shapes, workload=replace(shapes.workload, times=_NANO_TIMES))


_SHAPES = {
    shapes.name: shapes
    for shapes in (
        *(moondream2.shapes(name, f"Moondream2 {name.upper()}", config) for name, config in SIZES.items()),
        _nano_shapes(),
        llava_mini.shapes(LLAVA_MINI, "LLaVA-Mini", llava_mini_sizes.FULL),
        tinygpt_v.shapes(TINYGPT_V, "TinyGPT-V", TinyGptVConfig()),
    )
}
_SMALL = {
    "moondream2": replace(moondream2.shapes("quick", "Small", _SMALL_MOONDREAM2), precisions=("int8",)),
    "llava_mini": llava_mini.shapes(f"quick-{LLAVA_MINI}", "Small LLaVA-Mini", llava_mini_sizes.TINY),
    "tinygpt_v": tinygpt_v.shapes(f"quick-{TINYGPT_V}", "Small TinyGPT-V", tinygpt_v_sizes.TINY),
}


def sizes() -> list[str]:
    """Names of all models."""
    return sorted(_SHAPES)


def shapes_of(name: str, *, quick: bool = False) -> Shapes:
    """One of `sizes`, or the small model of its family under a short workload."""
    shapes = _SHAPES[name]
    if not quick:
        return shapes
    small = _SMALL[shapes.family]
    short = replace(small.workload, answer_tokens=16, sweep_tokens=8, depths=small.workload.depths[:2])
    return replace(small, workload=short, quick=True)


def find_bundles(shapes: Shapes, folder: Path, *, openvino: bool = False) -> list[Path]:
    """The built-in model's bundle, or those in `folder` by precision; what is missing is exported.

    They have OpenVINO IR where `openvino` asks for it, and where the shapes have it anyway.
    """
    if shapes.name == NANO:
        return [BUILT_IN_PATH]
    checkpoint = folder / f"random-{shapes.name}"
    compiled = openvino or (shapes.compiled and "openvino" in installed_engines())
    suffix = "-openvino" if openvino and not shapes.compiled else ""
    bundles = {precision: folder / f"{shapes.name}-{precision}{suffix}" for precision in shapes.precisions}
    for precision, out in bundles.items():
        if not out.exists():
            if not checkpoint.exists():
                shapes.write(checkpoint)
            measure(export_random, checkpoint, shapes.family, out, precision, compiled)
    return list(bundles.values())


def export_random(checkpoint: Path, family: str, out: Path, precision: Precision, openvino: bool) -> None:
    """Export a checkpoint, with OpenVINO IR or without."""
    request = ExportRequest(
        name=checkpoint.name, family=family, source=checkpoint, out=out, precision=precision, openvino=openvino
    )
    export(request)
