"""Between steps 2 and 3: all that a module computes only for training folded into the weights that it runs with.

fastvit: RepMixer, MobileOne, large kernels, position encoding, batch norms, layer scales. tiny_vit: batch norms, and
the gather of attention biases. Modules of other kinds have the branches folded that they know how to fold themselves;
batch norms behind their convolutions are folded in the graph (`passes/simplify`).
"""

from __future__ import annotations

import copy

from torch import nn

from edgevlm_export.reparameterize import fastvit, tiny_vit
from edgevlm_export.torchvision_operators import declare_missing_operators


def reparameterize(module: nn.Module) -> nn.Module:
    """A folded copy of a timm model in eval mode, which computes the same up to rounding; `module` is left alone."""
    declare_missing_operators()
    from timm.utils.model import reparameterize_model

    folded: nn.Module = reparameterize_model(copy.deepcopy(module), inplace=True)
    for fold in (fastvit.fold_blocks, tiny_vit.fold_blocks):
        fold(folded)
    return folded.eval().requires_grad_(False)
