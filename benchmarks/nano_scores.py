"""How well nano answers about held-out scenes, and what int8 and int4 cost it: all bundles through the runtime.

python -m benchmarks.nano_scores [--scenes N]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.tables import ROOT, save, table, write_section
from edgevlm.home import load
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.answer import Answer, Box, Point
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.manifest import Precision
from edgevlm_runtime.model import Model
from edgevlm_runtime.options import GenerateOptions
from training.evaluate import score_answerer

_CHECKPOINT = ROOT / "training" / "nano"
_OPTIONS = GenerateOptions(max_tokens=160)
_SHOWN = {
    "query color": "what color is it: right answers",
    "query count": "how many of a kind: right answers",
    "query count all": "how many objects: right answers",
    "query shape": "what shape is it: right answers",
    "query where": "where is it: right answers",
    "query exists": "is it there: right answers",
    "query read word": "read a printed word: right answers",
    "query read number": "read a printed number: right answers",
    "query read handwritten": "read a handwritten digit: right answers",
    "caption short: every object in its color": "short captions that name every object in its color",
    "caption normal: every object in its color": "normal captions that do",
    "caption long: every object in its color": "long captions that do",
    "caption short: and with its text": "short captions that also read every text right",
    "detect: mean IoU": "boxes: mean IoU",
    "point: inside the object": "points inside the object",
}


@dataclass(frozen=True)
class BundleAnswerer:
    """A model of the runtime with the methods that are scored."""

    model: Model

    def encode(self, image: Image.Image) -> EncodedImage:
        return self.model.encode(image)

    def caption(self, image: EncodedImage, length: str) -> Answer:
        return self.model.caption(image, length, _OPTIONS)

    def query(self, image: EncodedImage, question: str) -> Answer:
        return self.model.query(image, question, _OPTIONS)

    def detect(self, image: EncodedImage, name: str) -> tuple[Box, ...]:
        return self.model.detect(image, name).objects

    def point(self, image: EncodedImage, name: str) -> tuple[Point, ...]:
        return self.model.point(image, name).points


def score(source: str | Path, n_scenes: int) -> dict[str, float]:
    """Mean of every score on the first test scenes."""
    with load(source) as model:
        return score_answerer(BundleAnswerer(model), n_scenes).means()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    n_scenes: int = parser.parse_args().scenes
    with tempfile.TemporaryDirectory() as folder:
        scores = {
            "float32": score(_export("fp32", Path(folder)), n_scenes),
            "int8": score("nano", n_scenes),
            "int4": score(_export("int4", Path(folder)), n_scenes),
        }
    save("nano", {"scenes": n_scenes, "scores": scores})
    text = render(scores, n_scenes)
    write_section("nano", text)
    print(text)


def _export(precision: Precision, folder: Path) -> Path:
    out = folder / f"nano-{precision}"
    export(ExportRequest(name="nano", family="moondream2", source=_CHECKPOINT, out=out, precision=precision))
    return out


def render(scores: Mapping[str, Mapping[str, float]], n_scenes: int) -> str:
    """The README's table."""
    rows = [[shown, *(f"{100 * scores[p][name]:.1f}" for p in scores)] for name, shown in _SHOWN.items()]
    return (
        f"{table(['nano, percent', *scores], rows)}\n\n{n_scenes} held-out scenes; `python -m benchmarks.nano_scores`."
    )


if __name__ == "__main__":
    main()
