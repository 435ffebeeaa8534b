"""What guessing tokens ahead gains nano, answer by answer in turns: calls of the decoder, right guesses, time.

Contestants: a lookup; nano as its own draft, which is as often right as a draft can be, and no cheaper; and a guesser
that knows the answer at no cost, the limit of what any could gain with a model of this size.

python -m benchmarks.speculation [--scenes N]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from benchmarks.race import spread_of
from benchmarks.tables import save, table, write_section
from edgevlm.home import BUILT_IN_PATH
from edgevlm_runtime.answer import Answer
from edgevlm_runtime.bundle import Bundle, open_bundle
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.engines import Array, Engine, FloatArray, Graph, SharedBuffers, open_engine
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.model import Model
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.parts import needed, open_text
from edgevlm_runtime.prompts import Prompt
from edgevlm_runtime.speculate import LONGEST_DRAFT, SAFE_LEAD
from edgevlm_runtime.streams import Checkpoint
from training.dialogue import LENGTHS, questions
from training.drawing import draw
from training.questions import TOPICS
from training.scenes import Scene, scene

_PICTURE_SIDE = 448
_N_QUESTIONS = 3
_LOOKUPS = (2, 4, 8)
_PLAIN, _OWN_DRAFT, _LIMIT = "no guesses", "nano as its own draft", "all guesses right, at no cost"
_OPTIONS = GenerateOptions(max_tokens=160)

Ask = Callable[[Model, EncodedImage, GenerateOptions], Answer]


class CountingEngine:
    """An engine that counts the runs of its decoder, and opens a graph once for all models.

    Each graph has threads of its own, which keep a core busy for a while after a run: those of another contestant would
    slow down the next one.
    """

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.n_calls = 0
        self._engine = engine
        self._opened: dict[Path, Graph] = {}

    def open(self, path: Path) -> Graph:
        """See `Engine.open`."""
        if path not in self._opened:
            graph = self._engine.open(path)
            self._opened[path] = CountingGraph(self, graph) if path.stem == "decoder" else graph
        return self._opened[path]


@dataclass(frozen=True)
class CountingGraph:
    """A graph that tells its engine of every run."""

    engine: CountingEngine
    graph: Graph

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        """See `Graph.run`."""
        self.engine.n_calls += 1
        return self.graph.run(inputs, shared)


@dataclass
class Prophet:
    """In place of a draft model: it knows the answer."""

    model: Model
    answer: Sequence[int] = ()

    def encode(
        self, image: Pixels, *, max_crops: int | None = None, checkpoint: Checkpoint | None = None
    ) -> EncodedImage:
        return self.model.encode(image, max_crops=max_crops, checkpoint=checkpoint)

    @contextmanager
    def drafting(self, image: EncodedImage | None, prompt: Prompt) -> Iterator[Prophet]:
        yield self

    def guess(self, ids: Sequence[int], limit: int) -> list[int]:
        return list(self.answer[len(ids) :][: min(limit, LONGEST_DRAFT)])

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class Costs:
    """Of all answers of one kind in one way: sums, and how fast each answer's tokens came against the plain ones."""

    tokens: int = 0
    calls: int = 0
    guessed: int = 0
    accepted: int = 0
    ratios: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """What is published; the speed is the median over answers, which a stall of the machine can not move."""
        return {
            "tokens": self.tokens,
            "tokens_per_call": self.tokens / self.calls,
            "guessed": self.guessed,
            "accepted": self.accepted,
            "speed": statistics.median(self.ratios),
            "spread": spread_of(self.ratios),
        }


@dataclass(frozen=True)
class Contestant:
    """A way to answer: a model, and how much it looks up."""

    model: Model
    options: GenerateOptions = _OPTIONS


class Race:
    """All ways in turn, answer by answer."""

    def __init__(self, bundle: Bundle) -> None:
        self._engine = CountingEngine(_engine(bundle))
        plain, drafter = Model(bundle, self._engine), Model(bundle, _engine(bundle))
        self._prophet = Prophet(plain)
        self._contestants = {
            _PLAIN: Contestant(plain),
            **{f"lookup {n}": Contestant(plain, replace(_OPTIONS, lookup=n)) for n in _LOOKUPS},
            _OWN_DRAFT: Contestant(Model(bundle, self._engine, open_draft=lambda: drafter)),
            _LIMIT: Contestant(Model(bundle, self._engine, open_draft=lambda: self._prophet)),
        }
        self.costs = {task: {name: Costs() for name in self._contestants} for task in ("captions", "answers")}

    def run(self, drawn: Scene, index: int) -> None:
        """Ask everything about a scene, the contestants in another order each time.

        Raises:
            RuntimeError: a guess changed an answer.
        """
        image = draw(drawn, _PICTURE_SIDE)
        rng = Random(index)
        images = {name: each.model.encode(image) for name, each in self._contestants.items()}
        for task, ask in _asked(drawn, rng):
            expected = ask(self._prophet.model, images[_PLAIN], _OPTIONS)
            self._prophet.answer = expected.token_ids
            order = rng.sample(list(self._contestants), len(self._contestants))
            self._take_turns(order, self.costs[task], ask, images, expected)

    def _take_turns(
        self,
        order: Sequence[str],
        costs: Mapping[str, Costs],
        ask: Ask,
        images: Mapping[str, EncodedImage],
        expected: Answer,
    ) -> None:
        milliseconds: dict[str, float] = {}
        for name in order:
            each = self._contestants[name]
            calls = self._engine.n_calls
            answer = ask(each.model, images[name], each.options)
            if answer.token_ids != expected.token_ids:
                raise RuntimeError(f"{name}: {answer.text!r} instead of {expected.text!r}")
            costs[name].tokens += len(answer.token_ids)
            costs[name].calls += self._engine.n_calls - calls
            costs[name].guessed += answer.usage.guessed_tokens
            costs[name].accepted += answer.usage.accepted_tokens
            milliseconds[name] = answer.timings.decode_ms
        if expected.token_ids:
            for name in order:
                costs[name].ratios.append(milliseconds[_PLAIN] / milliseconds[name])


def _engine(bundle: Bundle) -> Engine:
    return open_engine("onnxruntime", None, bundle.manifest)


def _asked(drawn: Scene, rng: Random) -> Iterator[tuple[str, Ask]]:
    for length in LENGTHS:
        yield "captions", partial(_caption, length)
    for topic in rng.sample(sorted(TOPICS), _N_QUESTIONS):
        for exchange in questions(drawn, rng, topic)[:1]:
            yield "answers", partial(_query, exchange.prompt)


def _caption(length: str, model: Model, image: EncodedImage, options: GenerateOptions) -> Answer:
    return model.caption(image, length, options)


def _query(question: str, model: Model, image: EncodedImage, options: GenerateOptions) -> Answer:
    return model.query(image, question, options)


@dataclass(frozen=True)
class Rounding:
    """How far logits are off, in their standard deviations, where several tokens were read at once; and all leads."""

    largest: float
    close_leads: float


def measure_rounding(bundle: Bundle, pictures: Sequence[Image.Image]) -> Rounding:
    """Of the long captions of some pictures, four tokens at once against one by one."""
    engine = _engine(bundle)
    model, decoder = Model(bundle, engine), open_text(bundle, Graphs(bundle, engine)).decoder
    prompt = decoder.embed(needed(bundle.manifest.prompt, "prompt").captions["long"])
    largest, leads = 0.0, []
    for picture in pictures:
        image = model.encode(picture)
        embeddings = decoder.embed(model.caption(image, "long", _OPTIONS).token_ids)
        logits: list[FloatArray] = []
        for size in (1, 4):
            with image.borrow() as cache:
                decoder.run(prompt, cache)
                parts = [embeddings[start : start + size] for start in range(0, len(embeddings), size)]
                logits.append(np.stack([step.logits for part in parts for step in decoder.run_each(part, cache)]))
        deviations = logits[0].std(axis=1)
        largest = max(largest, float((np.abs(logits[1] - logits[0]).max(axis=1) / deviations).max()))
        top = np.sort(logits[0], axis=1)[:, -2:]
        leads += ((top[:, 1] - top[:, 0]) / deviations).tolist()
    return Rounding(largest, float(np.mean(np.array(leads) <= SAFE_LEAD)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20)
    n_scenes: int = parser.parse_args().scenes
    scenes = [scene("test", index) for index in range(n_scenes)]
    bundle = open_bundle(BUILT_IN_PATH)
    race = Race(bundle)
    for index, drawn in enumerate(scenes):
        race.run(drawn, index)
    rounding = measure_rounding(bundle, [draw(drawn, _PICTURE_SIDE) for drawn in scenes])
    figures = {task: {name: each.figures() for name, each in costs.items()} for task, costs in race.costs.items()}
    save("speculation", {"scenes": n_scenes, "rounding": asdict(rounding), "figures": figures})
    text = render(figures, rounding, n_scenes)
    write_section("speculation", text)
    print(text)


def render(figures: Mapping[str, Mapping[str, Mapping[str, float]]], rounding: Rounding, n_scenes: int) -> str:
    """The README's tables."""
    tables = [
        table(
            [f"nano, {task}", "tokens a call", "guesses right", "tokens/s against none"],
            [_row(name, each) for name, each in rows.items()],
        )
        for task, rows in figures.items()
    ]
    return "\n\n".join(
        [
            *tables,
            f"{n_scenes} held-out scenes, the same answers from all, in turns; a call may read several tokens, the "
            "prompt's counts too; ± is the distance between the quartiles of single answers over their median. Four "
            f"tokens at once moved a logit by {rounding.largest:.2g} standard deviations at most; "
            f"{100 * rounding.close_leads:.1f} % of tokens lead by less than the {SAFE_LEAD} from which a guess may "
            "count. `python -m benchmarks.speculation`.",
        ]
    )


def _row(name: str, each: Mapping[str, float]) -> list[str]:
    right = f"{100 * each['accepted'] / each['guessed']:.0f} % of {each['guessed']:.0f}" if each["guessed"] else ""
    return [name, f"{each['tokens_per_call']:.2f}", right, f"{each['speed']:.2f}x ± {100 * each['spread']:.0f} %"]


if __name__ == "__main__":
    main()
