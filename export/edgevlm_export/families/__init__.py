"""Step 2: every model family by name. A new model is one more entry here."""

from __future__ import annotations

from edgevlm_export.families.dual_encoder import ClipFamily, SiglipFamily
from edgevlm_export.families.family import Family
from edgevlm_export.families.llava_mini import LlavaMiniFamily
from edgevlm_export.families.moondream2 import Moondream2Family
from edgevlm_export.families.timm_backbone import TimmBackboneFamily
from edgevlm_export.families.tinygpt_v import TinyGptVFamily
from edgevlm_export.families.vit import VitFamily

_ALL: tuple[Family, ...] = (
    Moondream2Family(),
    LlavaMiniFamily(),
    TinyGptVFamily(),
    TimmBackboneFamily(),
    ClipFamily(),
    SiglipFamily(),
    VitFamily(),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
