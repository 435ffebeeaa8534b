"""`python -m edgevlm` is the command `edgevlm`."""

import sys

from edgevlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
