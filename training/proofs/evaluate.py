"""`python -m training.proofs.evaluate`: export every shrunken model in three precisions and ask about held-out scenes.

An answer is right when it is the expected one, letter for letter. "Blind" is float32 looking at a gray picture.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean

from PIL import Image

from benchmarks.tables import save, table, write_section
from edgevlm.home import load
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.manifest import Precision
from edgevlm_runtime.model import Model
from edgevlm_runtime.options import GenerateOptions
from training.dialogue import Exchange
from training.drawing import draw
from training.evaluate import PICTURE_SIDE, Tally
from training.proofs.asking import WEIGHTS, asked
from training.proofs.catalog import HERE, PROOFS
from training.scenes import Scene, scene

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")
_OPTIONS = GenerateOptions(max_tokens=24)
_GRAY = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The share of right answers to all questions, and by topic."""

    right: float
    asked: int
    topics: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PROOFS), help="some of the models, without writing results")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--checkpoints", type=Path, default=HERE, help="the folder that holds DIR/NAME")
    options = parser.parse_args()
    found = {name: _score_all(options.checkpoints / name, name, options.scenes) for name in options.names}
    text = render(found, options.scenes)
    print(text)
    if set(options.names) == set(PROOFS):
        save("proofs", {"scenes": options.scenes, "scores": _plain(found)})
        write_section("proofs", text)


def _score_all(checkpoint: Path, name: str, n_scenes: int) -> dict[str, Scores]:
    scores: dict[str, Scores] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            with load(export_proof(checkpoint, name, Path(folder) / precision, precision)) as model:
                scores[precision] = score(model, n_scenes)
                if precision == "fp32":
                    scores["blind"] = score(model, n_scenes, blind=True)
            print(f"{name} {precision}: {100 * scores[precision].right:.1f} %", flush=True)
    return scores


def export_proof(checkpoint: Path, name: str, out: Path, precision: Precision) -> Path:
    """A bundle of a checkpoint."""
    request = ExportRequest(
        name=name.replace("_", "-"), family=PROOFS[name].family, source=checkpoint, out=out, precision=precision
    )
    export(request)
    return out


def score(model: Model, n_scenes: int, *, blind: bool = False) -> Scores:
    """Ask one question of every topic about each of the first test scenes."""
    tally = Tally()
    for index in range(n_scenes):
        drawn = scene("test", index)
        picture = draw(drawn, PICTURE_SIDE)
        image = model.encode(Image.new("RGB", picture.size, _GRAY) if blind else picture)
        for one in exam(drawn, index):
            answer = model.query(image, one.prompt, _OPTIONS).text.strip()
            tally.add(one.topic, float(answer == one.answer))
    counts, means = tally.counts(), tally.means()
    total = sum(counts.values())
    return Scores(right=sum(counts[topic] * means[topic] for topic in counts) / total, asked=total, topics=means)


def exam(drawn: Scene, seed: int) -> Iterator[Exchange]:
    """One question of each topic that the scene allows."""
    rng = Random(seed)
    for topic in WEIGHTS:
        if options := asked(drawn, rng, topic):
            yield rng.choice(options)


def render(found: Mapping[str, Mapping[str, Scores]], n_scenes: int) -> str:
    """The README's table."""
    header = ["right answers, percent", "float32", "int8", "int4", "blind"]
    rows = [
        [PROOFS[name].title, *(f"{100 * scores[kind].right:.1f}" for kind in (*PRECISIONS, "blind"))]
        for name, scores in found.items()
    ]
    n_asked = round(fmean(scores["fp32"].asked for scores in found.values()))
    note = f"{n_asked} questions about {n_scenes} held-out scenes; blind is float32 looking at a gray picture."
    return f"{table(header, rows)}\n\n{note} `python -m training.proofs.evaluate`."


def _plain(found: Mapping[str, Mapping[str, Scores]]) -> dict[str, dict[str, dict[str, object]]]:
    """The scores as JSON holds them."""
    return {
        name: {
            kind: {
                "right": round(one.right, 4),
                "asked": one.asked,
                "topics": {topic: round(share, 4) for topic, share in one.topics.items()},
            }
            for kind, one in scores.items()
        }
        for name, scores in found.items()
    }


if __name__ == "__main__":
    main()
