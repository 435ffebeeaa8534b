"""Step 2: every model family by name. A new model is one more entry here."""

from __future__ import annotations

from edgevlm_export.families.family import Family
from edgevlm_export.families.moondream2 import Moondream2Family

FAMILIES: dict[str, Family] = {family.name: family for family in (Moondream2Family(),)}
