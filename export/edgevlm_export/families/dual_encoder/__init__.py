"""Models that compare images with texts: one tower for each, trained to embed a picture and its caption alike."""

from __future__ import annotations

from edgevlm_export.families.dual_encoder.clip import ClipFamily
from edgevlm_export.families.dual_encoder.siglip import SiglipFamily

__all__ = ["ClipFamily", "SiglipFamily"]
