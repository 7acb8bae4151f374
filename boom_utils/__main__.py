"""``python -m boom_utils`` is the command ``boom``."""

import sys

from boom_utils.cli import main

if __name__ == "__main__":
    sys.exit(main())
