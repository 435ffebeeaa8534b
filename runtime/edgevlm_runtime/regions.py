"""Places in an image: coordinates and sizes to embeddings, hidden states back to them, and the loop that finds objects.

Places are decoded greedily. All are fractions of the upright image; centers lie in [0, 1), while a box may reach
outside: it is not clamped, as the references do not clamp it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm_runtime.answer import Box, Point
from edgevlm_runtime.decoder import Session
from edgevlm_runtime.engines import FloatArray, Graph
from edgevlm_runtime.manifest import RegionSpec, Role


class Regions:
    """The region graphs of one model, opened by `open_graph` when they are needed."""

    def __init__(self, spec: RegionSpec, open_graph: Callable[[Role], Graph]) -> None:
        self.spec = spec
        self._open = open_graph

    def encode_coordinates(self, coordinates: Sequence[float]) -> FloatArray:
        """Fractions to embeddings (coordinates, dim)."""
        return self._run("region_coordinate_encoder", "coordinates", "embeddings", np.array(coordinates)[:, None])

    def encode_sizes(self, sizes: Sequence[tuple[float, float]]) -> FloatArray:
        """Widths and heights to embeddings (sizes, dim)."""
        return self._run("region_size_encoder", "sizes", "embeddings", np.array(sizes))

    def decode_coordinate(self, hidden: FloatArray) -> float:
        """The likeliest coordinate of one hidden state (1, dim): its bin over the number of bins."""
        logits = self._run("region_coordinate_decoder", "hidden", "logits", hidden)  # (1, bins)
        return float(np.argmax(logits[0])) / self.spec.coordinate_bins

    def decode_size(self, hidden: FloatArray) -> tuple[float, float]:
        """The likeliest width and height of one hidden state (1, dim)."""
        logits = self._run("region_size_decoder", "hidden", "logits", hidden)  # (1, 2, bins)
        width, height = np.argmax(logits[0], axis=-1)
        return self._size(int(width)), self._size(int(height))

    def _size(self, size_bin: int) -> float:
        if self.spec.size_scale == "linear":
            return size_bin / self.spec.size_bins
        return float(2.0 ** (10 * size_bin / (self.spec.size_bins - 1) - 10))

    def _run(self, role: Role, source: str, result: str, values: FloatArray) -> FloatArray:
        return self._open(role).run({source: np.asarray(values, np.float32)})[result]


@dataclass(frozen=True, kw_only=True)
class Locator:
    """The loop that finds objects, until the model says `eos_id` or there are `max_objects`.

    Any other token only means that one more object follows. Objects that the context has no room for are left out.
    """

    regions: Regions
    eos_id: int
    max_objects: int

    def points(self, session: Session, prompt: FloatArray) -> Iterator[Point]:
        """The centers that the prompt (tokens, dim) asks for; raises as `Decoder.run`."""
        for x, y, _, _ in self._objects(session, prompt, sized=False):
            yield Point(x=x, y=y)

    def boxes(self, session: Session, prompt: FloatArray) -> Iterator[Box]:
        """The boxes that the prompt (tokens, dim) asks for; raises as `Decoder.run`."""
        for x, y, width, height in self._objects(session, prompt, sized=True):
            yield Box(x_min=x - width / 2, y_min=y - height / 2, x_max=x + width / 2, y_max=y + height / 2)

    def _objects(
        self, session: Session, prompt: FloatArray, *, sized: bool
    ) -> Iterator[tuple[float, float, float, float]]:
        """Centers x, y with width and height, which are 0 unless `sized`."""
        step = session.prefill(prompt)
        for _ in range(self.max_objects):
            if int(np.argmax(step.logits)) == self.eos_id or session.left < (3 if sized else 2):
                return
            x = self.regions.decode_coordinate(step.hidden)
            step = session.step(self.regions.encode_coordinates([x]))
            y = self.regions.decode_coordinate(step.hidden)
            step = session.step(self.regions.encode_coordinates([y]))
            width, height = 0.0, 0.0
            if sized:
                width, height = self.regions.decode_size(step.hidden)
                step = session.step(self.regions.encode_sizes([(width, height)]))
            yield x, y, width, height
