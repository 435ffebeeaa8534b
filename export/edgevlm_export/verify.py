"""Step 7: the bundle against the torch module in float32, through the runtime that will run it.

The bundle is measured first and closed, then the module runs layer by layer: the two are never in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from edgevlm_export.families.family import Recipe
from edgevlm_export.fidelity import Bar, bar_of, compare_outputs, report_checks
from edgevlm_export.reference import Reference, ReferenceSteps, Sample, Seen, family_part
from edgevlm_export.scene import draw_image, prompts, region_inputs
from edgevlm_runtime.bundle import Bundle, open_bundle
from edgevlm_runtime.decoder import Step
from edgevlm_runtime.engines import Array, FloatArray, open_engine
from edgevlm_runtime.fidelity import mean_divergence, relative_error, require, rows, share_agreeing
from edgevlm_runtime.golden import GOLDEN, Golden, GoldenAnswer, GoldenGraph, write_golden
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import Pixels, load_image
from edgevlm_runtime.kinds import IMAGE_ROLES
from edgevlm_runtime.manifest import FidelityReport, GraphFidelity, PromptSpec, Role
from edgevlm_runtime.parts import TextParts, needed, open_text
from edgevlm_runtime.probe import (
    ObservedImage,
    answer_greedily,
    follow,
    observe_image,
    suppress,
)
from edgevlm_runtime.prompts import Prompt, Prompts, control_ids
from edgevlm_runtime.tokenizer import TextTokenizer
from edgevlm_runtime.verify import golden_checks, run_on

N_PARTS = 4  # how often verify_export reports progress
MAX_CROPS = 4  # of the drawn image: enough to be stitched and pooled, two by two at the published sizes
MIN_POSITIONS = 200
MAX_TOKENS = 24  # of one answer
_GOLDEN_ROWS = 4
_GOLDEN_LOGITS = 4096


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What the bundle did.

    `logits` (positions, vocab) are those that the ids of all samples were chosen from, after the bundle's own image
    tokens; `steps` those of the first sample, after the original's.
    """

    image_graphs: tuple[GraphFidelity, ...]
    samples: tuple[Sample, ...]
    logits: FloatArray
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class _Region:
    """One region graph: its input, the bundle's output and the original's."""

    role: Role
    given: FloatArray
    value: Array
    reference: Array


def verify_export(root: Path, recipe: Recipe, part_done: Callable[[], None] = lambda: None) -> FidelityReport:
    """Measure the bundle in `root`, whose manifest is written, write its golden.npz and hold it to its bar.

    `part_done` is called N_PARTS times on the way.

    Raises:
        FidelityError: a figure misses the bar of the bundle's precision and cache.
        ExportError: the family lacks what verification needs.
    """
    bundle = open_bundle(root, check=False)
    manifest = bundle.manifest
    bar = bar_of(manifest.precision, needed(manifest.cache, "cache").dtype)
    spec = needed(manifest.prompt, "prompt")
    reference, png = Reference(recipe), draw_image()
    pixels = load_image(png)
    image = observe_image(needed(bundle.manifest.image, "image"), reference.open, pixels, MAX_CROPS)
    (seen,) = reference.see((image.tokens,), (_first_prompt(recipe, spec),))
    part_done()
    measured = _measure(bundle, pixels, image, seen)
    part_done()
    steps = reference.follow(image.tokens, measured.samples)
    part_done()
    regions = _compare_regions(bundle, reference, steps.hidden[:_GOLDEN_ROWS])
    report = _report(measured, steps, regions, spec.suppressed_ids, bar)
    outputs = {role: bundle.manifest.graphs[role].outputs[0].name for role in IMAGE_ROLES}
    observed = [_golden_graph(role, image.output(role, name)) for role, name in outputs.items()]
    if recipe.fuser is not None:
        observed.append(_golden_graph("prefuse", seen.prefix))
    golden = _golden(png, observed, measured, steps, regions, bar)
    write_golden(root / GOLDEN, golden)
    require(report_checks(report, bar), str(root))
    for engine in ("onnxruntime", *_compiled_for(bundle)):
        require(golden_checks(bundle, golden, open_engine(engine)), f"{root} with {engine}")
    part_done()
    return report


def _first_prompt(recipe: Recipe, spec: PromptSpec) -> tuple[int, ...]:
    tokenizer = TextTokenizer(family_part(recipe.tokenizer, "tokenizer"), control_ids(spec))
    return next(prompts(spec, Prompts(spec, tokenizer)))


def _compiled_for(bundle: Bundle) -> list[str]:
    """The other engines that graphs of the bundle are written for."""
    return sorted({engine for graph in bundle.manifest.graphs.values() for engine in graph.compiled})


def _measure(bundle: Bundle, pixels: Pixels, image: ObservedImage, seen: Seen) -> _Measured:
    """Everything that needs the bundle's large graphs. image and seen are the original's."""
    graphs = Graphs(bundle, open_engine())
    try:
        parts = open_text(bundle, graphs)
        image_graphs = tuple(_compare_image_graph(graphs, bundle, role, image) for role in IMAGE_ROLES)
        own = observe_image(needed(bundle.manifest.image, "image"), graphs.open, pixels, MAX_CROPS)
        samples, logits = _answer_all(parts, own.tokens)
        steps = follow(parts.decoder, parts.read_prefix(seen.prefix), seen.prompts[0], samples[0].answer)
        fused = () if parts.fuser is None else (_compare_fusion(parts, image.tokens, samples[0].prompt, seen),)
        return _Measured(image_graphs=(*image_graphs, *fused), samples=samples, logits=logits, steps=tuple(steps))
    finally:
        graphs.close()


def _compare_image_graph(graphs: Graphs, bundle: Bundle, role: Role, image: ObservedImage) -> GraphFidelity:
    """A graph on what the original's was given, all calls together."""
    output = bundle.manifest.graphs[role].outputs[0].name
    values = [graphs.open(role).run(call.inputs)[output] for call in image.calls[role]]
    return compare_outputs(role, [(np.concatenate(values), image.output(role, output))])


def _compare_fusion(parts: TextParts, tokens: FloatArray, prompt: tuple[int, ...], seen: Seen) -> GraphFidelity:
    """The layers before the decoder on the original's image tokens (tokens, dim), and on one prompt."""
    read = parts.read_image([tokens])
    return compare_outputs(
        "prefuse", [(read.prefix, seen.prefix), (parts.embed(Prompt(ids=prompt), read.states), seen.prompts[0])]
    )


def _answer_all(parts: TextParts, tokens: FloatArray) -> tuple[tuple[Sample, ...], FloatArray]:
    """Greedy answers to prompts until there are enough positions, and the logits of these (positions, vocab)."""
    image = parts.read_image([tokens])
    samples, logits, n_positions = [], [], 0
    for prompt in prompts(parts.spec, parts.prompts):
        asked = parts.embed(Prompt(ids=prompt), image.states)
        answer, chosen_from = answer_greedily(parts.decoder, image.cache, asked, parts.spec, MAX_TOKENS)
        samples.append(Sample(prompt=prompt, answer=answer))
        logits.append(chosen_from)
        n_positions += len(answer)
        if n_positions >= MIN_POSITIONS:
            break
    return tuple(samples), np.concatenate(logits)


def _compare_regions(bundle: Bundle, reference: Reference, hidden: FloatArray) -> tuple[_Region, ...]:
    """The region graphs that the bundle has, decoders on hidden states (n, dim) of the original."""
    graphs = Graphs(bundle, open_engine())
    regions = []
    for role, values in region_inputs(hidden).items():
        if role in bundle.manifest.graphs:
            spec = bundle.manifest.graphs[role]
            original = reference.open(role).run({spec.inputs[0].name: values})[spec.outputs[0].name]
            regions.append(
                _Region(role=role, given=values, value=run_on(graphs, role, spec, values), reference=original)
            )
    graphs.close()
    return tuple(regions)


def _report(
    measured: _Measured,
    steps: ReferenceSteps,
    regions: tuple[_Region, ...],
    suppressed_ids: tuple[int, ...],
    bar: Bar,
) -> FidelityReport:
    lengths = [len(sample.answer) for sample in measured.samples]
    starts = [0, *accumulate(lengths)][:-1]
    allowed = [suppress(part, suppressed_ids) for part in np.split(steps.logits, starts[1:])]
    chosen = np.concatenate([sample.answer for sample in measured.samples])
    tie_nats = bar.limits.tie_nats
    return FidelityReport(
        graphs=(
            *measured.image_graphs,
            _decoder_fidelity(measured, steps),
            *(compare_outputs(region.role, [(region.value, region.reference)]) for region in regions),
        ),
        logits_relative_error=max(relative_error(measured.logits[i], steps.logits[i]) for i in starts),
        greedy_agreement=share_agreeing(np.concatenate(allowed), chosen, tie_nats),
        top1_agreement=share_agreeing(steps.logits, measured.logits.argmax(axis=-1), tie_nats),
        kl_divergence=mean_divergence(measured.logits, steps.logits),
        n_positions=len(steps.logits),
    )


def _decoder_fidelity(measured: _Measured, steps: ReferenceSteps) -> GraphFidelity:
    n = len(measured.steps)
    logits = np.stack([step.logits for step in measured.steps])
    hidden = np.concatenate([step.hidden for step in measured.steps])
    return compare_outputs("decoder", [(logits, steps.logits[:n]), (hidden, steps.hidden[:n])])


def _golden(
    png: bytes,
    observed: Sequence[GoldenGraph],
    measured: _Measured,
    steps: ReferenceSteps,
    regions: tuple[_Region, ...],
    bar: Bar,
) -> Golden:
    """The original's outputs, thinned out so that the file stays small beside the smallest model."""
    sample = measured.samples[0]
    logit_ids = _spread(steps.logits.shape[-1], _GOLDEN_LOGITS)
    located = [
        GoldenGraph(
            role=region.role,
            row_ids=np.arange(len(rows(region.reference)), dtype=np.int32),
            values=rows(region.reference),
            given=region.given,
        )
        for region in regions
    ]
    return Golden(
        image=png,
        max_crops=MAX_CROPS,
        graphs=(*observed, *located),
        answer=GoldenAnswer(
            prompt=sample.prompt, answer=sample.answer, logit_ids=logit_ids, logits=steps.logits[0, logit_ids]
        ),
        limits=bar.limits,
    )


def _golden_graph(role: Role, output: Array) -> GoldenGraph:
    values = rows(output)
    row_ids = _spread(len(values), _GOLDEN_ROWS)
    return GoldenGraph(role=role, row_ids=row_ids, values=values[row_ids])


def _spread(n: int, n_wanted: int) -> Array:
    """At most n_wanted of n indexes, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, n_wanted)).astype(np.int32))
