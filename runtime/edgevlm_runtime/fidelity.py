"""How near a bundle is to its original: the figures, what they may be, and their table.

Knows arrays and the manifest's report; not where the arrays come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm_runtime.engines import Array
from edgevlm_runtime.errors import FidelityError
from edgevlm_runtime.manifest import FidelityReport, GraphFidelity, ImageFidelityReport


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a bundle must reach on the golden inputs, figures as in the manifest's report.

    `tie_nats`: a token counts as chosen alike where its log-probability is at most so far below the best one's.
    """

    graph_relative_error: float
    graph_cosine: float
    logits_relative_error: float
    greedy_agreement: float
    tie_nats: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure against its limit: at most that, or at least that."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """False for a figure that is not a number, too."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.what} is {self.value:.3g}, but must be at {'least' if self.at_least else 'most'} {self.limit:g}"


def require(checks: Sequence[Check], where: str) -> None:
    """Raise FidelityError, naming the first figure that misses its limit and how many others do."""
    failed = [check for check in checks if not check.passed]
    if failed:
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise FidelityError(f"{where}: {failed[0]}{others}; the bundle does not answer as its original does")


def rows(x: Array) -> Array:
    """All leading axes as one: (..., dim) to (rows, dim)."""
    return x.reshape(-1, x.shape[-1])


def relative_error(value: Array, reference: Array) -> float:
    """The largest absolute difference over the reference's largest absolute value."""
    scale = float(np.abs(reference).max())
    error = float(np.abs(np.asarray(value, np.float64) - reference).max())
    return error / scale if scale else error


def mean_cosine(value: Array, reference: Array) -> float:
    """The mean over rows (all axes but the last) of the cosine between rows."""
    a, b = (rows(np.asarray(x, np.float64)) for x in (value, reference))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.mean((a * b).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)))


def share_agreeing(logits: Array, choices: Sequence[int] | Array, tie_nats: float) -> float:
    """The share of positions whose choice is the best of logits (positions, vocab), or at most `tie_nats` below it.

    Without that tolerance two candidates that are equally good would make rounding look like a fault.
    """
    chosen = np.take_along_axis(logits, np.asarray(choices, np.int64)[:, None], axis=-1)[:, 0]
    return float(np.mean(logits.max(axis=-1) - chosen <= tie_nats))


def mean_divergence(logits: Array, reference: Array) -> float:
    """Mean over positions of KL(reference || bundle) in nats, from logits (positions, vocab)."""
    ours, theirs = (_log_softmax(np.asarray(x, np.float64)) for x in (logits, reference))
    return float(np.mean((np.exp(theirs) * (theirs - ours)).sum(axis=-1)))


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def report_table(report: FidelityReport) -> tuple[tuple[str, ...], ...]:
    """The report as text cells, header first: a row per graph, then the whole model's figures."""
    return (
        *_graph_rows(report.graphs),
        ("first logits", f"{report.logits_relative_error:.1e}", ""),
        ("greedy tokens agree", f"{report.greedy_agreement:.1%}", ""),
        (f"top-1 of {report.n_positions} agrees", f"{report.top1_agreement:.1%}", ""),
        ("KL divergence, nats", f"{report.kl_divergence:.1e}", ""),
    )


def image_report_table(report: ImageFidelityReport) -> tuple[tuple[str, ...], ...]:
    """`report_table` of an image model: a row per graph, then what folding did and whether the first class agrees."""
    folds = [
        (f"{role} folded: {fold.nodes_before} to {fold.nodes_after} nodes", f"{fold.relative_error:.1e}", "")
        for role, fold in report.folds.items()
    ]
    agreement = report.top1_agreement
    top1 = [] if agreement is None else [(f"top-1 of {report.n_images} images agrees", f"{agreement:.1%}", "")]
    return (*_graph_rows(report.graphs), *folds, *top1)


def _graph_rows(graphs: Sequence[GraphFidelity]) -> tuple[tuple[str, ...], ...]:
    """The header, and a row per graph."""
    figures = ((graph.role, f"{graph.relative_error:.1e}", f"{graph.cosine:.6f}") for graph in graphs)
    return (("graph", "relative error", "cosine"), *figures)
