"""``python -m lrsearch``."""

import sys

from lrsearch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
