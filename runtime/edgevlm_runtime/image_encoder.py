"""Pixels -> what an image graph says of them, a few images a call.

Dimensions: images, side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from edgevlm_runtime.engines import FloatArray, Graph
from edgevlm_runtime.errors import DamagedBundle, EngineError
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.manifest import GraphSpec, ImageSpec, TensorSpec
from edgevlm_runtime.preprocess import prepare_image

# More images a call gain no time on a CPU. Large ones go one by one: their activations would fill the memory.
_MAX_IMAGES = 8
_MAX_PIXELS = 8 * 384 * 384


class ImageEncoder:
    """A graph of one input, images (images, 3, side, side), with what the manifest says of them. Threads may share it.

    `batch` is how many images it takes at most in one call.

    Raises:
        DamagedBundle: the manifest describes another kind of graph.
    """

    def __init__(self, spec: ImageSpec, graph: Graph, graph_spec: GraphSpec) -> None:
        self._spec = spec
        self._graph = graph
        self._input = _only_input(graph_spec, spec)
        self._shapes = {output.name: _fixed_axes(output) for output in graph_spec.outputs}
        free = max(1, min(_MAX_IMAGES, _MAX_PIXELS // spec.crop_px**2))
        first = self._input.shape[0]
        self.batch = first if isinstance(first, int) else free

    def run(self, images: Iterable[Pixels], done: Callable[[], None] | None = None) -> dict[str, FloatArray]:
        """All outputs by name, float32 (images, ...), of uint8 (height, width, 3) pixels of any sizes.

        Images are taken one at a time, so that a generator keeps only one of them in memory; `done` is called after
        each was run.

        Raises:
            EngineError: the graph failed, or gave another shape than the manifest says.
        """
        results = {name: [np.empty((0, *shape), np.float32)] for name, shape in self._shapes.items()}
        prepared = (prepare_image(pixels, self._spec) for pixels in images)
        for batch in _batches(prepared, self.batch):
            outputs = self._graph.run({self._input.name: batch})
            for name, shape in self._shapes.items():
                results[name].append(_checked(outputs, name, (len(batch), *shape)))
            if done is not None:
                for _ in batch:
                    done()
        return {name: np.concatenate(parts) for name, parts in results.items()}


def _batches(images: Iterator[FloatArray], size: int) -> Iterator[FloatArray]:
    """Images (3, side, side) as batches (images, 3, side, side)."""
    while batch := list(islice(images, size)):
        yield np.stack(batch)


def _checked(outputs: dict[str, FloatArray], name: str, shape: tuple[int, ...]) -> FloatArray:
    output = outputs.get(name)
    if output is None or output.shape != shape:
        found = "nothing" if output is None else output.shape
        raise EngineError(f"image graph: output {name} is {found} where {shape} is needed; export the model again")
    return output


def _only_input(graph: GraphSpec, spec: ImageSpec) -> TensorSpec:
    """The input: its first axis free or 1, the others those of a prepared image."""
    side = spec.crop_px
    if len(graph.inputs) == 1 and graph.inputs[0].shape[1:] == (3, side, side):
        first = graph.inputs[0].shape[0]
        if isinstance(first, str) or first == 1:
            return graph.inputs[0]
    found = ", ".join(f"{each.name} {each.shape}" for each in graph.inputs)
    raise DamagedBundle(
        f"manifest.json: {graph.file} takes {found or 'nothing'}, not images (images or 1, 3, {side}, {side}); "
        "export the model again"
    )


def _fixed_axes(output: TensorSpec) -> tuple[int, ...]:
    """All axes but the first, which are numbers."""
    axes = tuple(axis for axis in output.shape[1:] if isinstance(axis, int))
    if not output.shape or len(axes) != len(output.shape) - 1:
        raise DamagedBundle(
            f"manifest.json: output {output.name} {output.shape} must have one free axis, the first; "
            "export the model again"
        )
    return axes
