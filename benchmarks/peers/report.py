"""The tables: every peer's figures, our targets and whether they are reached, how close each is to the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.contestants import EAGER, LLAMA, OURS, Contestant
from benchmarks.peers.figures import Figure, PeerFigures
from benchmarks.peers.goals import Goal, best_of, goals
from benchmarks.peers.machine import Limits
from benchmarks.peers.shapes import Shapes
from benchmarks.tables import duration, table

_GB = 1e9
_NONE = "-"
_WORDS = {True: "yes", False: "no", None: _NONE}


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that was measured."""

    shapes: Shapes
    limits: Limits
    contestants: Mapping[str, Contestant]
    figures: Mapping[str, PeerFigures]
    absent: tuple[str, ...]

    @property
    def title(self) -> str:
        """The model, for drawings."""
        return f"{self.shapes.title} shapes, {self.shapes.workload.threads} threads"

    def of(self, kind: str) -> dict[str, PeerFigures]:
        """Figures of one kind of peer by name."""
        return {name: found for name, found in self.figures.items() if self.contestants[name].kind == kind}

    def labeled(self) -> dict[str, PeerFigures]:
        """Figures of all by what drawings call them."""
        return {self.contestants[name].label: found for name, found in self.figures.items()}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure of ours, what it shall be, what it is, of whom, and whether that is enough; None without a peer."""

    what: str
    wanted: str
    who: str
    got: str
    reached: bool | None


def render(results: Results) -> str:
    """The README's section."""
    notes = [f"Not measured: {reason}." for reason in results.absent]
    aims = ratio_table(results) if results.shapes.gguf is None else target_table(results)
    return "\n\n".join((_about(results), aims, peer_table(results), limit_table(results), *notes))


def peer_table(results: Results) -> str:
    """One row a peer; the best of a column is bold."""
    columns: dict[str, tuple[str, Callable[[Figure], str], bool]] = {
        "load": ("load_ms", _time, False),
        "vision, one crop": ("vision_ms", _time, False),
        "first token": ("first_token_ms", _time, False),
        "second question": ("second_question_ms", _time, False),
        "after a restart": ("restart_ms", _time, False),
        "tokens/s": ("tokens_per_second", _speed, True),
        "peak RSS": ("peak_rss", _gb, False),
        "one image": ("one_image_rss", _gb, False),
    }
    cells = [_column(results, *column) for column in columns.values()]
    labels = [results.contestants[name].label for name in results.figures]
    return table(["", *columns], [list(row) for row in zip(labels, *cells, strict=True)])


def target_table(results: Results) -> str:
    """What was aimed at: the best pair of ours for each figure, and what each bundle gives without choosing."""
    defaults = [name for name in results.of(OURS) if results.contestants[name].is_default]
    rows = []
    for goal, best in zip(_goals(results), targets(results), strict=True):
        mine = [_judged(goal, results, name) for name in defaults]
        rows.append([goal.what, goal.wanted, *map(_verdict, mine), _verdict(best), best.who])
    labels = [results.contestants[name].label for name in defaults]
    return table(["", "target", *labels, "best of EdgeVLM", "which"], rows)


def ratio_table(results: Results) -> str:
    """Ours over PyTorch's best, for a model that llama.cpp has no port of."""
    columns = {"vision, one crop": "vision_ms", "first token": "first_token_ms"}
    columns |= {"second question": "second_question_ms", "tokens/s": "tokens_per_second"}
    best = {}
    for name in columns.values() if (theirs := results.of(EAGER)) else ():
        medians = [found[name].median for found in theirs.values()]
        best[name] = max(medians) if name == "tokens_per_second" else min(medians)
    rows = [
        [
            results.contestants[label].label,
            *(f"{found[name].median / best[name]:.3g}" if best else _NONE for name in columns.values()),
        ]
        for label, found in results.of(OURS).items()
    ]
    return table(["over PyTorch's best", *columns], rows)


def targets(results: Results) -> list[Target]:
    """Each with that pair of bundle and engine which is best at it; none of a model that llama.cpp has no port of."""
    found = []
    for goal in _goals(results):
        name = best_of(goal, results.of(OURS))
        found.append(_unknown(goal) if name is None else _judged(goal, results, name))
    return found


def limit_table(results: Results) -> str:
    """How much of the machine each peer uses."""
    limits = results.limits
    says = (
        f"Measured limits: memory {limits.bandwidth / _GB:.1f} GB/s; matrix products int8 {limits.int8 / _GB:.0f}, "
        f"bfloat16 {limits.bfloat16 / _GB:.0f}, float32 {limits.float32 / _GB:.0f} billion operations/s. "
        "Decode is a share of the memory's, vision and prefix of the fastest matrix product's."
    )
    rows = [
        [results.contestants[name].label, *(f"{share:.0%}" for share in shares(results, name).values())]
        for name in results.figures
    ]
    return says + "\n\n" + table(["share of the limit", "decode", "vision", "prefix"], rows)


def shares(results: Results, name: str) -> dict[str, float]:
    """Of the machine's limits: bytes a token must read, operations a crop and a prefix must take."""
    found, costs, workload = results.figures[name], results.shapes.costs, results.shapes.workload
    n_bytes = results.contestants[name].weights_bytes + found["position_bytes"].median * workload.question_depth
    crop = costs.crop_operations / (found["vision_ms"].median / 1e3)
    prefix = costs.prefix_operations / (found["prefix_ms"].median / 1e3)
    peak = results.limits.matrix_peak
    read = n_bytes * found["tokens_per_second"].median
    return {"decode": read / results.limits.bandwidth, "vision": crop / peak, "prefix": prefix / peak}


def _about(results: Results) -> str:
    workload = results.shapes.workload
    settings = [
        f"{contestant.variant} {contestant.settings}"
        for contestant in results.contestants.values()
        if contestant.kind == LLAMA
    ]
    weights = "trained weights against random ones" if results.shapes.name == "nano" else "random weights"
    text = (
        f"{results.shapes.title} shapes, {weights}, {workload.threads} threads: a new image of one crop, "
        f"{workload.prefix_tokens} positions, a question of {workload.question_tokens} tokens, "
        f"{workload.answer_tokens} greedy tokens. Medians; ± is the width of the middle half of the runs. "
        "(auto) marks the engine that a bundle gets without choosing."
    )
    return text + (f" llama.cpp's settings, the best that were found: {'; '.join(settings)}." if settings else "")


def _column(results: Results, name: str, style: Callable[[Figure], str], most: bool) -> list[str]:
    known = [found.get(name) for found in results.figures.values()]
    medians = [figure.median for figure in known if figure is not None]
    best = (max if most else min)(medians, default=None)
    return [_NONE if figure is None else _bold(style(figure), figure.median == best) for figure in known]


def _time(figure: Figure) -> str:
    return f"{duration(figure.median)} ±{figure.spread:.0%}"


def _speed(figure: Figure) -> str:
    return f"{figure.median:.1f} ±{figure.spread:.0%}"


def _gb(figure: Figure) -> str:
    return f"{figure.median / _GB:.2f} GB"


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def _goals(results: Results) -> Sequence[Goal]:
    return goals(results.of(LLAMA)) if results.shapes.gguf is not None else ()


def _judged(goal: Goal, results: Results, name: str) -> Target:
    judged = goal.judge(name, results.figures[name])
    if judged is None:
        return _unknown(goal)
    who = results.contestants[name].variant
    return Target(what=goal.what, wanted=goal.wanted, who=who, got=judged.text, reached=judged.reached)


def _unknown(goal: Goal) -> Target:
    return Target(what=goal.what, wanted=goal.wanted, who=_NONE, got=_NONE, reached=None)


def _verdict(target: Target) -> str:
    return target.got if target.reached is None else f"{target.got}: {_WORDS[target.reached]}"
