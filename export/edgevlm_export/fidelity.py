"""How near a bundle must be to the module it was exported from: a bar for each precision.

What the figures of a right bundle are, by the size of one rounding:

fp32: sums in another order, 1e-6 a matrix and 1e-5 a model. A hundred times that is allowed; every token must agree.
fp16: weights rounded by 3e-4, matrices computed in float32; some 1e-3 after all layers.
int8: weights and activations in blocks of up to 128 with a scale each. A block's largest value is about 2.8 times its
standard deviation, so a rounding is 0.6 % of it, for each of the two; layers add up to 2 % of the logits' spread, a
cosine of 0.9998. A channel eight times above the others makes it 0.9997; those further above are kept in float32.
Left in int8, channels a hundred times above make it 0.998. One scale for a whole tensor gives 0.99 when channels are
twelve times above, and 10 % of the tokens change. A cosine of 0.999 and 5 % of the tokens lie between.
int4: weights of the decoder in 16 steps. A block of 128 spans 5.3 times its standard deviation, so a rounding is 10 %
of it and the cosine of one product 0.995; layers add up to 0.985 where the activations have nothing in common to make
up for errors with, as in random models, and to 0.995 in trained ones. Tokens stay: 1 to 3 % change, the divergence is
0.005 to 0.015 nats. The bars are two to three times as far from the original as that.

Among tens of thousands of candidates two are often equally good, so that rounding alone decides between them, most of
all in a model with random weights. A token therefore agrees when the original finds it at most `tie_nats` less likely
(in logarithms of probability) than its best: 0.1 is a probability of 90 % of the best one's. What that hides, the
divergence of the whole distribution shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevlm_runtime.engines import Array
from edgevlm_runtime.fidelity import Check, Limits, mean_cosine, relative_error
from edgevlm_runtime.manifest import CacheType, FidelityReport, GraphFidelity, Precision, Role


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a report must reach; figures as in `FidelityReport`."""

    limits: Limits
    top1_agreement: float
    kl_divergence: float


BARS: Mapping[Precision, Bar] = {
    "fp32": Bar(
        limits=Limits(
            graph_relative_error=1e-3,
            graph_cosine=0.99999,
            logits_relative_error=1e-3,
            greedy_agreement=1.0,
            tie_nats=1e-3,
        ),
        top1_agreement=1.0,
        kl_divergence=1e-5,
    ),
    "fp16": Bar(
        limits=Limits(
            graph_relative_error=1e-2,
            graph_cosine=0.9999,
            logits_relative_error=1e-2,
            greedy_agreement=0.98,
            tie_nats=0.02,
        ),
        top1_agreement=0.98,
        kl_divergence=1e-3,
    ),
    "int8": Bar(
        limits=Limits(
            graph_relative_error=0.15,
            graph_cosine=0.999,
            logits_relative_error=0.15,
            greedy_agreement=0.95,
            tie_nats=0.1,
        ),
        top1_agreement=0.95,
        kl_divergence=0.01,
    ),
    "int4": Bar(
        limits=Limits(
            graph_relative_error=0.4,
            graph_cosine=0.97,
            logits_relative_error=0.4,
            greedy_agreement=0.9,
            tie_nats=0.2,
        ),
        top1_agreement=0.9,
        kl_divergence=0.05,
    ),
}

_CACHE_BARS: Mapping[CacheType, Precision] = {"float32": "fp32", "float16": "fp16", "int8": "int8"}


def bar_of(precision: Precision, cache_type: CacheType) -> Bar:
    """The bar of the weights, or of the cache where that rounds more."""
    ranks = list(BARS)
    return BARS[max(precision, _CACHE_BARS[cache_type], key=ranks.index)]


def compare_outputs(role: Role, outputs: Sequence[tuple[Array, Array]]) -> GraphFidelity:
    """One graph by its worst output; each is the bundle's and the original's array of one shape."""
    return GraphFidelity(
        role=role,
        relative_error=max(relative_error(value, reference) for value, reference in outputs),
        cosine=min(mean_cosine(value, reference) for value, reference in outputs),
    )


def report_checks(report: FidelityReport, bar: Bar) -> tuple[Check, ...]:
    """Every figure of a report against its bar."""
    limits = bar.limits
    graphs = [
        check
        for graph in report.graphs
        for check in (
            Check(
                what=f"relative error of {graph.role}",
                value=graph.relative_error,
                limit=limits.graph_relative_error,
            ),
            Check(what=f"cosine of {graph.role}", value=graph.cosine, limit=limits.graph_cosine, at_least=True),
        )
    ]
    return (
        *graphs,
        Check(
            what="relative error of the first logits",
            value=report.logits_relative_error,
            limit=limits.logits_relative_error,
        ),
        Check(
            what="share of greedy tokens that agree",
            value=report.greedy_agreement,
            limit=limits.greedy_agreement,
            at_least=True,
        ),
        Check(
            what=f"top-1 agreement at {report.n_positions} positions",
            value=report.top1_agreement,
            limit=bar.top1_agreement,
            at_least=True,
        ),
        Check(what="mean KL divergence", value=report.kl_divergence, limit=bar.kl_divergence),
    )
