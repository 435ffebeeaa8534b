"""How hypothesis runs here, and what transformers needs where torchvision is of another build than torch."""

from __future__ import annotations

from hypothesis import settings

from edgevlm_export.torchvision_operators import declare_missing_operators

# Deadlines fail tests for nothing on a busy machine.
settings.register_profile("edgevlm", deadline=None)
settings.load_profile("edgevlm")
declare_missing_operators()  # tests import transformers at their top
