"""The tables: every peer's figures, our targets and whether they are reached, how close each is to the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.peers.contestants import LLAMA, OURS, Contestant
from benchmarks.peers.costs import crop_operations, prefix_operations
from benchmarks.peers.figures import Figure, PeerFigures
from benchmarks.peers.machine import Limits
from benchmarks.peers.workload import Workload
from benchmarks.tables import table
from edgevlm_export.modules.moondream2 import Moondream2Config

_GB = 1e9
_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that was measured. `one_image_rss` in bytes of those peers that have a mode for one image."""

    size: str
    config: Moondream2Config
    workload: Workload
    limits: Limits
    contestants: Mapping[str, Contestant]
    figures: Mapping[str, PeerFigures]
    one_image_rss: Mapping[str, int]
    absent: tuple[str, ...]

    def of(self, kind: str) -> dict[str, PeerFigures]:
        """Figures of one kind of peer by name."""
        return {name: found for name, found in self.figures.items() if self.contestants[name].kind == kind}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure of ours, what it shall be, what it is, and whether that is enough; None where a side is missing."""

    what: str
    wanted: str
    got: str
    reached: bool | None


def render(results: Results) -> str:
    """The README's section."""
    workload = results.workload
    asked = (
        f"Moondream2 {results.size.upper()} shapes, random weights, {workload.threads} threads: a new image of one "
        f"crop, {workload.prefix_tokens} positions, a question of {workload.question_tokens} tokens, "
        f"{workload.answer_tokens} greedy tokens. Medians; ± is the width of the middle half of the runs."
    )
    notes = [f"Not measured: {reason}." for reason in results.absent]
    return "\n\n".join((asked, peer_table(results), target_table(results), limit_table(results), *notes))


def peer_table(results: Results) -> str:
    """One row a peer."""
    header = ["", "load", "vision, one crop", "first token", "second question", "tokens/s", "peak RSS", "one image"]
    rows = []
    for name, found in results.figures.items():
        once = results.one_image_rss.get(name)
        rows.append(
            [
                name,
                _cell(found["load_ms"], 1e-3, "{:.1f} s"),
                _cell(found["vision_ms"], 1e-3, "{:.2f} s"),
                _cell(found["first_token_ms"], 1e-3, "{:.2f} s"),
                _cell(found["second_question_ms"], 1.0, "{:.0f} ms"),
                _cell(found["tokens_per_second"], 1.0, "{:.1f}"),
                _gb(found["peak_rss"].median),
                _gb(once or 0),
            ]
        )
    return table(header, rows)


def target_table(results: Results) -> str:
    """Ours against the best of llama.cpp, figure by figure, won or lost."""
    words = {True: "yes", False: "no", None: _NONE}
    rows = [[target.what, target.wanted, target.got, words[target.reached]] for target in targets(results)]
    return table(["figure", "target", "measured", "reached"], rows)


def targets(results: Results) -> list[Target]:
    """Each with the best of our bundles."""
    mine, theirs = results.of(OURS), results.of(LLAMA)
    second, cold = _best(mine, "second_question_ms") / 1e3, _best(mine, "first_token_ms") / 1e3
    return [
        _at_most("time to first token, new image", mine, theirs, "first_token_ms", 0.30),
        Target(
            what="second question about an image",
            wanted="at most 0.3 s and 0.05 of the first",
            got=f"{second:.2f} s, {second / cold:.3f}",
            reached=second <= 0.3 and second <= 0.05 * cold,
        ),
        _seconds("the same after a restart", mine, "restart_ms", 0.8),
        _decode(mine, theirs),
        _memory(results),
        _at_most("vision encoder per crop", mine, theirs, "vision_ms", 0.15),
        _seconds("load to ready", mine, "load_ms", 1.0),
    ]


def limit_table(results: Results) -> str:
    """How much of the machine each peer uses."""
    limits = results.limits
    says = (
        f"Measured limits: memory {limits.bandwidth / _GB:.1f} GB/s; matrix products int8 {limits.int8 / _GB:.0f}, "
        f"bfloat16 {limits.bfloat16 / _GB:.0f}, float32 {limits.float32 / _GB:.0f} billion operations/s. "
        "Decode is a share of the memory's, vision and prefix of the fastest matrix product's."
    )
    rows = [[name, *(f"{share:.0%}" for share in shares(results, name).values())] for name in results.figures]
    return says + "\n\n" + table(["", "decode", "vision", "prefix"], rows)


def shares(results: Results, name: str) -> dict[str, float]:
    """Of the machine's limits: bytes a token must read, operations a crop and a prefix must take."""
    found, workload = results.figures[name], results.workload
    depth = workload.prefix_tokens + workload.question_tokens
    read = results.contestants[name].token.at(depth) * found["tokens_per_second"].median
    crop = crop_operations(results.config.vision) / (found["vision_ms"].median / 1e3)
    prefix = prefix_operations(results.config.text, workload.prefix_tokens) / (found["prefix_ms"].median / 1e3)
    peak = results.limits.matrix_peak
    return {"decode": read / results.limits.bandwidth, "vision": crop / peak, "prefix": prefix / peak}


def _at_most(
    what: str, mine: Mapping[str, PeerFigures], theirs: Mapping[str, PeerFigures], name: str, limit: float
) -> Target:
    wanted = f"at most {limit:.2f} of llama.cpp's best"
    if not theirs:
        return Target(what=what, wanted=wanted, got=_NONE, reached=None)
    ratio = _best(mine, name) / _best(theirs, name)
    return Target(what=what, wanted=wanted, got=f"{ratio:.2f}", reached=ratio <= limit)


def _seconds(what: str, mine: Mapping[str, PeerFigures], name: str, limit: float) -> Target:
    seconds = _best(mine, name) / 1e3
    return Target(what=what, wanted=f"at most {limit:g} s", got=f"{seconds:.2f} s", reached=seconds <= limit)


def _decode(mine: Mapping[str, PeerFigures], theirs: Mapping[str, PeerFigures]) -> Target:
    what, wanted = "decode, tokens/s", "at least 1.5 of llama.cpp's best"
    if not theirs:
        return Target(what=what, wanted=wanted, got=_NONE, reached=None)
    ratio = _best(mine, "tokens_per_second", max) / _best(theirs, "tokens_per_second", max)
    return Target(what=what, wanted=wanted, got=f"{ratio:.2f}", reached=ratio >= 1.5)


def _memory(results: Results) -> Target:
    what, wanted = "peak RSS of a run, int4", "at most 0.60 of llama.cpp's Q4_0"
    theirs = results.figures.get(f"{LLAMA} Q4_0")
    mine = [rss for name, rss in results.one_image_rss.items() if name.startswith(f"{OURS} int4")]
    if theirs is None or not mine:
        return Target(what=what, wanted=wanted, got=_NONE, reached=None)
    ratio = min(mine) / theirs["peak_rss"].median
    return Target(what=what, wanted=wanted, got=f"{ratio:.2f}", reached=ratio <= 0.6)


def _best(peers: Mapping[str, PeerFigures], name: str, choose: Callable[[list[float]], float] = min) -> float:
    return choose([found[name].median for found in peers.values()])


def _cell(figure: Figure, scale: float, style: str) -> str:
    return f"{style.format(scale * figure.median)} ±{figure.spread:.0%}" if figure.median else _NONE


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / _GB:.2f} GB" if n_bytes else _NONE
