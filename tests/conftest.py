"""How hypothesis runs here: without deadlines, which on a busy machine fail tests for nothing."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("edgevlm", deadline=None)
settings.load_profile("edgevlm")
