"""`python -m heat_hf.cli`."""

import sys

from heat_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
