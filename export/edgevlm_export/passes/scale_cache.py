"""Give each attention the scales of its cache in int8: one for each channel of each head, of keys and of values.

They are inputs that attention ignores until `lower_cache` has it use them. They come from calibration. Keys are kept
rotated: a rotation moves what two channels hold between them, so that either can reach the length of both, at
positions that calibration did not have too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevlm_export.modules.layers import DOMAIN
from edgevlm_export.passes import attention as gqa
from edgevlm_export.passes.edits import initializer
from edgevlm_export.quantize import OutputPeaks
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import ExportError

MARGIN = 2.0  # how far beyond those of calibration: clipping costs far more than a coarser step
_LARGEST = 127


def run(model: ir.Model, peaks: OutputPeaks) -> ir.Model:
    """Add the scales in place.

    Raises:
        ExportError: calibration has not seen the matrix that makes a layer's keys and values.
    """
    for node in gqa.attentions(model.graph):
        _, n_heads, _, head_dim = gqa.fixed_shape(node.inputs[gqa.PAST_KEY])
        heads, key_peaks = (n_heads, head_dim), _peaks_of(node.inputs[gqa.KEY], peaks)
        keys = rotated_peaks(key_peaks.reshape(heads), gqa.fixed_shape(node.inputs[gqa.COS])[1])
        values = _peaks_of(node.inputs[gqa.VALUE], peaks).reshape(heads)
        node.resize_inputs(gqa.N_INPUTS)
        for place, kept, reached in ((gqa.KEY_SCALES, gqa.PAST_KEY, keys), (gqa.VALUE_SCALES, gqa.PAST_VALUE, values)):
            node.replace_input_with(place, _scales(model.graph, node.inputs[kept], reached))
    return model


def rotated_peaks(peaks: FloatArray, half: int) -> FloatArray:
    """What keys (heads, head_dim) of these largest magnitudes can reach once their first 2 * half channels, in halves,
    are rotated."""
    rotated = peaks.copy()
    lengths = np.hypot(peaks[:, :half], peaks[:, half : 2 * half])
    rotated[:, :half] = rotated[:, half : 2 * half] = lengths
    return rotated


def _peaks_of(value: ir.Value | None, peaks: OutputPeaks) -> FloatArray:
    """The peaks (channels,) of keys or values: of one part of what a Linear gives."""
    assert value is not None
    split = value.producer()
    if split is None or split.op_type != "Split" or split.inputs[0] is None:
        raise ExportError(f"{value.name}: keys and values are changed after their matrix; choose --kv-cache float16")
    linear = split.inputs[0].producer()
    assert linear is not None and linear.domain == DOMAIN and linear.inputs[1] is not None
    name = str(linear.inputs[1].name)
    if name not in peaks:
        raise ExportError(f"{name}: calibration has not seen its keys and values; choose --kv-cache float16")
    widths = [part.shape[-1] for part in split.outputs if part.shape is not None]
    ends = np.cumsum([width for width in widths if isinstance(width, int)])
    return np.split(peaks[name], ends)[split.outputs.index(value)]


def _scales(graph: ir.Graph, past: ir.Value | None, peaks: FloatArray) -> ir.Value:
    """Scales (1, heads, 1, head_dim) by which magnitudes up to MARGIN * peaks (heads, head_dim) fit into 8 bits."""
    assert past is not None
    reached = np.where(peaks > 0, peaks, peaks.max() or 1)  # a channel that was always 0 is not divided by 0
    scales = (MARGIN / _LARGEST * reached[None, :, None]).astype(np.float32)
    return initializer(graph, f"{past.name}.scales", lambda: scales, ir.DataType.FLOAT, scales.shape)
