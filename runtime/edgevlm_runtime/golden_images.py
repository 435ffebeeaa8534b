"""golden.npz of an image model: images and texts, what the original makes of them, and how far a bundle may be off.

Reads and writes the file, and runs a bundle on it. Arrays only: no pickles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import Array, Engine, FloatArray
from edgevlm_runtime.errors import DamagedBundle
from edgevlm_runtime.fidelity import Check, mean_cosine, relative_error, share_agreeing
from edgevlm_runtime.golden import read_arrays, role_named
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import load_image
from edgevlm_runtime.manifest import Role
from edgevlm_runtime.parts import open_image_encoder, open_text_encoder


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What a bundle must reach on the golden inputs, figures as in the manifest's report.

    `tie_nats`: a first class agrees where the original finds it at most so much less likely than its own, in nats.
    """

    graph_cosine: float
    graph_relative_error: float
    top1_agreement: float
    tie_nats: float


@dataclass(frozen=True, kw_only=True)
class GoldenImages:
    """All of golden.npz. `images` are encoded image files' bytes; `outputs` the original's float32 (images or texts,
    dim) by graph and by the output's name, of the graph `text` for `texts` and of others for `images`.
    """

    images: tuple[bytes, ...]
    texts: tuple[str, ...]
    outputs: Mapping[Role, Mapping[str, Array]]
    limits: ImageLimits


def write_golden_images(path: Path, golden: GoldenImages) -> None:
    """Write the file, compressed."""
    arrays: dict[str, Array] = {f"limit.{name}": np.array(value) for name, value in asdict(golden.limits).items()}
    arrays |= {f"image.{i}": np.frombuffer(image, np.uint8) for i, image in enumerate(golden.images)}
    arrays |= {f"text.{i}": np.frombuffer(text.encode(), np.uint8) for i, text in enumerate(golden.texts)}
    for role, outputs in golden.outputs.items():
        arrays |= {f"output.{role}.{name}": np.asarray(values, np.float32) for name, values in outputs.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes ** for its own option


def read_golden_images(path: Path) -> GoldenImages:
    """Read the file.

    Raises:
        DamagedBundle: it is not of this form.
    """
    return read_arrays(path, _read)


def run_golden(bundle: Bundle, engine: Engine, golden: GoldenImages) -> dict[Role, dict[str, FloatArray]]:
    """What a bundle makes of the golden inputs, in the form of `golden.outputs` and of the same graphs.

    Raises:
        DamagedBundle: the manifest lacks what a graph needs.
        EngineError: the engine failed.
    """
    graphs = Graphs(bundle, engine)
    try:
        return {role: _run(bundle, graphs, golden, role) for role in golden.outputs}
    finally:
        graphs.close()


def image_checks(outputs: Mapping[Role, Mapping[str, Array]], golden: GoldenImages) -> tuple[Check, ...]:
    """All figures of a bundle that gave `outputs`.

    Raises:
        DamagedBundle: the golden images do not fit it.
    """
    return tuple(check for role in golden.outputs for check in _check_graph(role, outputs[role], golden))


def _run(bundle: Bundle, graphs: Graphs, golden: GoldenImages, role: Role) -> dict[str, FloatArray]:
    if role == "text":
        return {"embeddings": open_text_encoder(bundle, graphs).embed(golden.texts)}
    return open_image_encoder(bundle, graphs, role).run(map(load_image, golden.images))


def _check_graph(role: Role, outputs: Mapping[str, Array], golden: GoldenImages) -> Iterator[Check]:
    limits = golden.limits
    for name, wanted in golden.outputs[role].items():
        if name not in outputs or outputs[name].shape != wanted.shape:
            raise DamagedBundle(f"golden images of graph {role} do not fit its output {name}; export the model again")
        error, cosine = relative_error(outputs[name], wanted), mean_cosine(outputs[name], wanted)
        yield Check(what=f"relative error of {role} {name}", value=error, limit=limits.graph_relative_error)
        yield Check(what=f"cosine of {role} {name}", value=cosine, limit=limits.graph_cosine, at_least=True)
        if name == "logits":
            agreement = share_agreeing(wanted, outputs[name].argmax(axis=-1), limits.tie_nats)
            what = "share of images of the same first class"
            yield Check(what=what, value=agreement, limit=limits.top1_agreement, at_least=True)


def _read(arrays: Mapping[str, Array]) -> GoldenImages:
    outputs: dict[Role, dict[str, Array]] = {}
    for key in arrays:
        kind, _, rest = key.partition(".")
        role, _, name = rest.partition(".")
        if kind == "output":
            outputs.setdefault(role_named(role), {})[name] = arrays[key]
    return GoldenImages(
        images=tuple(_items(arrays, "image")),
        texts=tuple(text.decode() for text in _items(arrays, "text")),
        outputs=outputs,
        limits=ImageLimits(**{field.name: float(arrays[f"limit.{field.name}"]) for field in fields(ImageLimits)}),
    )


def _items(arrays: Mapping[str, Array], kind: str) -> Iterator[bytes]:
    """The bytes of kind.0, kind.1 and so on."""
    count = sum(key.startswith(f"{kind}.") for key in arrays)
    return (arrays[f"{kind}.{i}"].tobytes() for i in range(count))
