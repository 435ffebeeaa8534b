"""Step 4: from traced graph to graph with weights, one pass a file, in this order.

simplify: fold constants, one operator where torch wrote several. name_axes: free axes by the names of the request.
scale_cache: what a cache in int8 is scaled by; `lower_cache` comes later, when a graph is on the disk.
split_outliers: int8 and int4 Linears with outlier channels in two.
lower_linear: each `edgevlm::Linear` in the precision that the policy gives its matrix. attach_weights: all other
parameters.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevlm_export.families.family import GraphRequest
from edgevlm_export.int4 import NO_MATRICES, Int4Matrices
from edgevlm_export.passes import attach_weights, lower_linear, name_axes, scale_cache, simplify, split_outliers
from edgevlm_export.quantize import NOT_CALIBRATED, Calibration, Policy
from edgevlm_export.weights import Weights
from edgevlm_runtime.manifest import CacheType


def run_passes(
    model: ir.Model,
    request: GraphRequest,
    weights: Weights,
    policy: Policy,
    calibration: Calibration = NOT_CALIBRATED,
    matrices: Int4Matrices = NO_MATRICES,
    cache_type: CacheType = "float32",
) -> ir.Model:
    """All passes; no tensor is read before the graph is written. `matrices` are those that the policy has in int4."""
    model = simplify.run(model)
    model = name_axes.run(model, request.inputs, request.outputs)
    if cache_type == "int8" and request.role == "decoder":
        model = scale_cache.run(model, calibration.peaks)
    model = split_outliers.run(model, weights, policy, calibration.outliers)
    model = lower_linear.run(model, weights, policy, matrices)
    return attach_weights.run(model, weights)
