"""Thinking before answering: a text whose stretches may be grounded at points in the image."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgevlm_runtime.answer import Grounding, Point, Reasoning
from edgevlm_runtime.decoder import Session
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.manifest import ReasoningSpec
from edgevlm_runtime.regions import Regions
from edgevlm_runtime.tokenizer import TextTokenizer


@dataclass
class Chunk:
    """A stretch of thought: its tokens and the coordinates among them, x and y in turn."""

    ids: list[int] = field(default_factory=list)
    coordinates: list[float] = field(default_factory=list)

    def points(self) -> tuple[Point, ...]:
        """Coordinates in pairs; one left over is dropped."""
        pairs = zip(self.coordinates[::2], self.coordinates[1::2], strict=False)
        return tuple(Point(x=x, y=y) for x, y in pairs)


class Thoughts:
    """Collects one reasoning, token by token."""

    def __init__(self, spec: ReasoningSpec, session: Session, regions: Regions) -> None:
        self.spec = spec
        self._session = session
        self._regions = regions
        self._chunks = [Chunk()]

    @property
    def n_tokens(self) -> int:
        """How many tokens were thought."""
        return sum(len(chunk.ids) for chunk in self._chunks)

    def embed_next(self, token: int, hidden: FloatArray) -> FloatArray:
        """Note a token; its embedding (1, dim), which for a coordinate is that of its value.

        A coordinate's value is read from the hidden state (1, dim) that the token was picked from.
        """
        if token in (self.spec.ground_start_id, self.spec.ground_end_id):
            self._chunks.append(Chunk())
        self._chunks[-1].ids.append(token)
        if token != self.spec.coordinate_id:
            return self._session.embed((token,))
        coordinate = self._regions.decode_coordinate(hidden)
        self._chunks[-1].coordinates.append(coordinate)
        return self._regions.encode_coordinates([coordinate])

    def reasoning(self, tokenizer: TextTokenizer) -> Reasoning:
        """The text of all chunks, and the grounded ones by their characters."""
        text = ""
        grounding = []
        for chunk in self._chunks:
            start = len(text)
            text += tokenizer.decode(chunk.ids)
            if points := chunk.points():
                grounding.append(Grounding(start=start, end=len(text), points=points))
        return Reasoning(text=text, grounding=tuple(grounding))
