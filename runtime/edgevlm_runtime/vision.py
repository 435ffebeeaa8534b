"""Pixels -> image tokens: crops through the vision graph, local features stitched and pooled, then projected.

Dimensions: crops, patches = grid * grid, rows and cols (of crops), dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edgevlm_runtime.engines import FloatArray, Graph
from edgevlm_runtime.errors import EngineError
from edgevlm_runtime.frames import Frames, squash
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.kinds import IMAGE_ROLES
from edgevlm_runtime.manifest import ImageSpec
from edgevlm_runtime.preprocess import CropGrid, make_crops


class VisionTower:
    """The graphs `vision` and `project` with what the manifest says of images. Threads may share it."""

    def __init__(self, spec: ImageSpec, vision: Graph, project: Graph) -> None:
        self._spec = spec
        self._vision = vision
        self._project = project

    def encode(
        self, pixels: Pixels, max_crops: int | None = None, before_crop: Callable[[int, int], None] | None = None
    ) -> FloatArray:
        """Image tokens float32 (tokens, dim) of uint8 (height, width, 3) pixels.

        `before_crop` is called with the index and the number of crops before each is encoded; what it raises ends
        the encoding.

        Raises:
            InvalidOption: `max_crops` is below 1.
            EngineError: a graph failed, or gave another number of patches than the manifest says.
        """
        crops, grid = make_crops(pixels, self._spec, max_crops)
        features = []
        for index in range(len(crops)):
            if before_crop is not None:
                before_crop(index, len(crops))
            # One crop a call: the same bits however many there are, and memory for one.
            features.append(self._vision.run({"crops": crops[index : index + 1]})["features"][0])
        joined = self._join(features, grid)
        tokens: FloatArray = self._project.run({"features": joined[None]})["tokens"][0]
        return tokens

    def encode_frames(self, frames: Frames, before_frame: Callable[[int, int], None] | None) -> Iterator[FloatArray]:
        """`encode` of one frame after the other, each squeezed into the square; `before_frame` as `before_crop`."""
        for index, pixels in enumerate(frames.read()):
            if before_frame is not None:
                before_frame(index, frames.count)
            yield self.encode(squash(pixels, self._spec.crop_px))

    def _join(self, features: list[FloatArray], grid: CropGrid) -> FloatArray:
        """The global crop's features beside the local ones', (patches, 2 * dim).

        Without tiling those of all crops, one after the other.
        """
        tiling = self._spec.tiling
        if tiling is None:
            return np.concatenate(features)
        side = self._spec.crop_px // tiling.patch_px
        if features[0].shape[0] != side * side:
            raise EngineError(f"vision graph: {features[0].shape[0]} patches where {side} x {side} are needed")
        local = features[0]
        if len(features) > 1:
            tiles = np.stack(features[1:]).reshape(-1, side, side, local.shape[-1])
            pooled = adaptive_average_pool(stitch(tiles, grid, tiling.margin_patches), side)
            local = pooled.reshape(side * side, -1)
        return np.concatenate([features[0], local], axis=-1)


def open_tower(spec: ImageSpec, graphs: Graphs) -> VisionTower:
    """The tower of a bundle, its graphs opened side by side; raises as `Graphs.open`."""
    graphs.prefetch(*IMAGE_ROLES)
    return VisionTower(spec, *(graphs.open(role) for role in IMAGE_ROLES))


def stitch(tiles: FloatArray, grid: CropGrid, margin: int) -> FloatArray:
    """One map from the features of overlapping local crops.

    `tiles` is (rows * cols, side, side, dim); neighbors share 2 * `margin` patches, of which each gives the half
    that is nearer to it. The result is (rows * (side - 2 * margin) + 2 * margin, cols * ..., dim).
    """
    side = tiles.shape[1]
    step = side - 2 * margin
    joined = np.empty((grid.rows * step + 2 * margin, grid.cols * step + 2 * margin, tiles.shape[-1]), np.float32)
    for index, tile in enumerate(tiles):
        row, col = divmod(index, grid.cols)
        top, bottom = _kept(row, grid.rows, side, margin)
        left, right = _kept(col, grid.cols, side, margin)
        down, across = row * step, col * step
        joined[down + top : down + bottom, across + left : across + right] = tile[top:bottom, left:right]
    return joined


def _kept(index: int, count: int, side: int, margin: int) -> tuple[int, int]:
    """Start and end of the patches that a tile gives along one axis: margins are kept at the image's border."""
    return (0 if index == 0 else margin), (side if index == count - 1 else side - margin)


def adaptive_average_pool(features: FloatArray, side: int) -> FloatArray:
    """(height, width, dim) averaged down to (side, side, dim): bins as PyTorch's adaptive_avg_pool2d has them."""
    return _pool_columns(_pool_columns(features, side).swapaxes(0, 1), side).swapaxes(0, 1)


def _pool_columns(features: FloatArray, side: int) -> FloatArray:
    """(length, other, dim) to (side, other, dim). Bin i averages from floor(i * length / side) to the ceiling of
    (i + 1) * length / side; neighbors may share a row."""
    length = features.shape[0]
    bins = [slice(i * length // side, -(-(i + 1) * length // side)) for i in range(side)]
    return np.stack([features[rows].mean(axis=0) for rows in bins])
