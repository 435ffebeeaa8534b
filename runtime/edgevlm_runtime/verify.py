"""Does a bundle answer on this machine as its original does? Its golden vectors, run through this machine's engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevlm_runtime.bundle import Bundle, open_bundle
from edgevlm_runtime.engines import Array, Engine, open_engine
from edgevlm_runtime.errors import DamagedBundle
from edgevlm_runtime.fidelity import Check, Limits, mean_cosine, relative_error, require, rows, share_agreeing
from edgevlm_runtime.golden import Golden, GoldenAnswer, GoldenGraph, read_golden
from edgevlm_runtime.golden_images import image_checks, read_golden_images, run_golden
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import load_image
from edgevlm_runtime.manifest import GraphSpec, Role
from edgevlm_runtime.options import LoadOptions
from edgevlm_runtime.parts import ReadImage, TextParts, needed, open_text
from edgevlm_runtime.probe import ObservedImage, follow, observe_image, suppress
from edgevlm_runtime.prompts import Prompt
from edgevlm_runtime.tuning import tuned_options


@dataclass(frozen=True, kw_only=True)
class GoldenResult:
    """A bundle that passed: how far it is from its original on this machine, and how far it might be."""

    engine: str
    n_files: int
    checks: tuple[Check, ...]


def verify_bundle(source: Path | Bundle, options: LoadOptions | None = None) -> GoldenResult:
    """Check every file of a bundle, then its golden vectors with the engine of the options.

    Raises:
        BundleError: a file is missing or altered, or there are no golden vectors.
        FidelityError: a figure misses its limit on this machine.
        EngineError: the engine is not installed, or failed.
    """
    bundle = source if isinstance(source, Bundle) else open_bundle(source, check=False)
    bundle.check_hashes()
    options = tuned_options(options or LoadOptions(), bundle)
    path = bundle.path(needed(bundle.manifest.golden, "golden"))
    engine = open_engine(options.engine, options.threads, bundle.manifest)
    if "decoder" in bundle.manifest.graphs:
        checks = golden_checks(bundle, read_golden(path), engine)
    else:
        images = read_golden_images(path)
        checks = image_checks(run_golden(bundle, engine, images), images)
    require(checks, str(bundle.root))
    return GoldenResult(engine=engine.name, n_files=len(bundle.manifest.files), checks=checks)


def golden_checks(bundle: Bundle, golden: Golden, engine: Engine) -> tuple[Check, ...]:
    """All figures of a bundle that generates text on its golden vectors.

    Raises:
        DamagedBundle: the golden vectors do not fit the manifest.
    """
    graphs = Graphs(bundle, engine)
    try:
        parts = open_text(bundle, graphs)
        spec = needed(bundle.manifest.image, "image")
        image = observe_image(spec, graphs.open, load_image(golden.image), golden.max_crops)
        read = parts.read_image([image.tokens])
        checks: list[Check] = []
        for graph in golden.graphs:
            own = read.prefix if graph.role == "prefuse" else _output(bundle, graphs, graph, image)
            checks += _check_graph(bundle, graph, own, golden.limits)
        return (*checks, *_check_answer(parts, golden.answer, read, golden.limits))
    finally:
        graphs.close()


def _output(bundle: Bundle, graphs: Graphs, golden: GoldenGraph, image: ObservedImage) -> Array:
    """The first output of a graph on what the original's was given, or on the image."""
    if golden.role not in bundle.manifest.graphs:
        raise DamagedBundle(f"{bundle.root}: golden vectors of a graph {golden.role} that the manifest does not have")
    spec = bundle.manifest.graphs[golden.role]
    if golden.given is None:
        return image.output(golden.role, spec.outputs[0].name)
    return run_on(graphs, golden.role, spec, golden.given)


def _check_graph(bundle: Bundle, golden: GoldenGraph, output: Array, limits: Limits) -> Iterator[Check]:
    values = rows(output)
    if golden.values.shape[1:] != values.shape[1:] or golden.row_ids.max(initial=0) >= len(values):
        raise DamagedBundle(f"{bundle.root}: golden vectors of graph {golden.role} do not fit it; export it again")
    values = values[golden.row_ids]
    yield Check(
        what=f"relative error of {golden.role}",
        value=relative_error(values, golden.values),
        limit=limits.graph_relative_error,
    )
    yield Check(
        what=f"cosine of {golden.role}",
        value=mean_cosine(values, golden.values),
        limit=limits.graph_cosine,
        at_least=True,
    )


def run_on(graphs: Graphs, role: Role, spec: GraphSpec, given: Array) -> Array:
    """The first output of a graph of one input."""
    return graphs.open(role).run({spec.inputs[0].name: given})[spec.outputs[0].name]


def _check_answer(parts: TextParts, golden: GoldenAnswer, image: ReadImage, limits: Limits) -> Iterator[Check]:
    asked = parts.embed(Prompt(ids=golden.prompt), image.states)
    steps = follow(parts.decoder, image.cache, asked, golden.answer)
    logits = np.stack([step.logits for step in steps])
    yield Check(
        what="relative error of the first logits",
        value=relative_error(logits[0, golden.logit_ids], golden.logits),
        limit=limits.logits_relative_error,
    )
    yield Check(
        what="share of greedy tokens that agree",
        value=share_agreeing(suppress(logits, parts.spec.suppressed_ids), golden.answer, limits.tie_nats),
        limit=limits.greedy_agreement,
        at_least=True,
    )
