"""``python -m mixlogit_align.cli``: the command ``mixlogit-align``."""

from __future__ import annotations

import sys

from mixlogit_align.cli import main

if __name__ == "__main__":
    sys.exit(main())
