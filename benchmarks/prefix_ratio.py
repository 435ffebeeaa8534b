"""What compression and fusion save until the first token, against a prefix of all patches through the same decoder.

python -m benchmarks.prefix_ratio BUNDLE [--repeats N] [--engine NAME] [--threads N]

The plain prefix is that of LLaVA-1.5: words, all patches of the image, question, read in one call. Image tokens are
random. The vision tower is left out. All three ways take turns, another one first each time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import prefix_costs
from benchmarks.prefix_costs import Shapes, Words, read_shapes, saving
from benchmarks.race import spread_of
from benchmarks.tables import save, table, write_section
from edgevlm_runtime.bundle import Bundle, open_bundle
from edgevlm_runtime.engines import FloatArray, open_engine
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.parts import ReadImage, TextParts, needed, open_text
from edgevlm_runtime.prompts import before_image
from edgevlm_runtime.records import write_record

QUESTION = "How many objects are there?"
WANTED = 5.0
PAPER_SAVING = 0.77
_FULL_PATCHES, _FULL_VALUES = 576, 10**9
_WAYS = tuple(prefix_costs.ALL)


class Prefixes:
    """The text half of a model, and the image tokens that it is given."""

    def __init__(self, parts: TextParts, shapes: Shapes) -> None:
        self._parts = parts
        self._before = before_image(parts.spec)
        rng = np.random.default_rng(0)
        size = parts.decoder.embed(self._before).std()  # of a word's embedding: nothing is too large for the layers
        self._tokens, self._patches = (
            (size * rng.standard_normal((n, shapes.dim))).astype(np.float32)
            for n in (shapes.features + shapes.compressed, shapes.patches)
        )
        self._image = parts.read_image([self._tokens])
        self._plain_cache = parts.decoder.new_cache()

    def words(self, raw_ids: Sequence[int]) -> Words:
        """How many tokens are read beside the image's; `raw_ids` as in the manifest."""
        question = self._parts.prompts.query(QUESTION).ids
        return Words(
            before=len(self._before),
            fused_before=sum(token not in raw_ids for token in self._before),
            question=len(question),
            fused_question=sum(token not in raw_ids for token in question),
        )

    def second_question(self) -> FloatArray:
        """Logits (vocab,) that the first token is chosen from, of a question about an image that was read."""
        return self._ask(self._image)

    def new_image(self) -> FloatArray:
        """The same about an image that is read first."""
        return self._ask(self._parts.read_image([self._tokens]))

    def plain_prefix(self) -> FloatArray:
        """The same behind all patches, nothing of which was read before."""
        decoder, cache = self._parts.decoder, self._plain_cache
        question = self._parts.prompts.query(QUESTION).ids
        embeddings = np.concatenate((decoder.embed(self._before), self._patches, decoder.embed(question)))
        logits = decoder.run(embeddings, cache).logits
        cache.rollback(0)
        return logits

    def _ask(self, image: ReadImage) -> FloatArray:
        n_read = image.cache.length
        embeddings = self._parts.embed(self._parts.prompts.query(QUESTION), image.states)
        logits = self._parts.decoder.run(embeddings, image.cache).logits
        image.cache.rollback(n_read)
        return logits


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Milliseconds of each way, round by round, and what it computes."""

    model: str
    precision: str
    shapes: Shapes
    words: Words
    ms: Mapping[str, Sequence[float]]

    @property
    def is_full_size(self) -> bool:
        """Whether the model is as large as the published one."""
        return self.shapes.patches == _FULL_PATCHES and self.shapes.layer_values > _FULL_VALUES

    def flops(self, way: str) -> int:
        """Operations of a way."""
        return prefix_costs.ALL[way](self.shapes, self.words)

    def faster(self, way: str) -> float:
        """How many times faster than the plain prefix, of the medians."""
        return statistics.median(self.ms["plain_prefix"]) / statistics.median(self.ms[way])

    def lighter(self, way: str) -> float:
        """How many times fewer operations than the plain prefix."""
        return self.flops("plain_prefix") / self.flops(way)


def compare(bundle: Bundle, *, repeats: int, engine: str = "auto", threads: int | None = None) -> Ratios:
    """Time all ways in turns, after one of each that does not count.

    Raises:
        DamagedBundle: the model does not compress and fuse.
    """
    manifest, shapes = bundle.manifest, read_shapes(bundle)
    with opened(bundle, engine, threads) as parts:
        prefixes = Prefixes(parts, shapes)
        calls: dict[str, Callable[[], FloatArray]] = {
            "second_question": prefixes.second_question,
            "new_image": prefixes.new_image,
            "plain_prefix": prefixes.plain_prefix,
        }
        ms = in_turns(calls, repeats)
        words = prefixes.words(needed(manifest.fusion, "fusion").raw_ids)
    return Ratios(model=manifest.name, precision=manifest.precision, shapes=shapes, words=words, ms=ms)


@contextmanager
def opened(bundle: Bundle, engine: str, threads: int | None) -> Iterator[TextParts]:
    """The text half of a bundle, closed afterwards."""
    graphs = Graphs(bundle, open_engine(engine, threads, bundle.manifest))
    try:
        yield open_text(bundle, graphs)
    finally:
        graphs.close()


def in_turns(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, after a round that does not count; another one is first each time."""
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(1 + repeats):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            start = time.perf_counter()
            calls[name]()
            if turn > 0:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return taken


def render(ratios: Ratios) -> str:
    """The README's table."""
    shapes, words = ratios.shapes, ratios.words
    told = {
        "plain_prefix": f"{shapes.patches} image tokens and the question through the decoder alone",
        "new_image": f"new image: fused, {shapes.compressed} image tokens, question",
        "second_question": "second question about an image",
    }
    rows = [
        [
            told[way],
            f"{statistics.median(ratios.ms[way]) / 1e3:.2f} s ± {spread_of(ratios.ms[way]):.0%}",
            f"{ratios.faster(way):.1f}x",
            f"{ratios.flops(way) / 1e12:.3g}",
            f"{ratios.lighter(way):.1f}x",
        ]
        for way in told
    ]
    second = ratios.faster("second_question")
    reached = "yes" if second >= WANTED else "no"
    without, with_tower = (saving(shapes, words, with_tower=included) for included in (False, True))
    return "\n\n".join(
        (
            table(["first token, without the vision tower", "time", "faster", "TFLOP", "less"], rows),
            f"A second question is {second:.1f} times faster than with {shapes.patches} image tokens; "
            f"at least {WANTED:.0f} times was wanted: {reached}. A new image takes {without:.0%} fewer "
            f"operations, {with_tower:.0%} where the vision tower and the projection count in both; the paper says "
            f"{PAPER_SAVING:.0%}. {words.before} tokens before the image and {words.question} of the question, "
            f"{ratios.precision}, medians of {len(ratios.ms['plain_prefix'])} rounds in turns. "
            "`python -m benchmarks.prefix_ratio BUNDLE`.",
        )
    )


def as_json(ratios: Ratios) -> dict[str, object]:
    """All figures."""
    return {
        "model": ratios.model,
        "precision": ratios.precision,
        "shapes": write_record(ratios.shapes),
        "words": write_record(ratios.words),
        "ms": dict(ratios.ms),
        "flops": {way: ratios.flops(way) for way in _WAYS},
        "faster": {way: ratios.faster(way) for way in _WAYS},
        "saving": saving(ratios.shapes, ratios.words, with_tower=False),
        "saving_with_tower": saving(ratios.shapes, ratios.words, with_tower=True),
        "paper_saving": PAPER_SAVING,
        "wanted": WANTED,
    }


def publish(ratios: Ratios) -> None:
    """Save what was measured on a model of full size; others only try the way."""
    if ratios.is_full_size:
        save("prefix_ratio", as_json(ratios))
        write_section("prefix ratio", render(ratios))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of a model that compresses and fuses")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    if bundle.manifest.fusion is None:
        parser.error(f"{options.bundle}: {bundle.manifest.name} does not fuse words and image; give one of llava-mini")
    ratios = compare(bundle, repeats=options.repeats, engine=options.engine, threads=options.threads)
    publish(ratios)
    print(render(ratios))
    if not ratios.is_full_size:
        print("\nNot published: the model is smaller than the published one.")


if __name__ == "__main__":
    main()
