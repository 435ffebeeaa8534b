"""The folder of this user's models, encoded images and what was measured on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """EDGEVLM_HOME, else `edgevlm` in the user's cache folder. It need not exist."""
    if chosen := os.environ.get("EDGEVLM_HOME"):
        return Path(os.path.expanduser(chosen))
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches/edgevlm"))
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")) / "edgevlm"
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "edgevlm"
