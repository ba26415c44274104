"""What the commands share: their exit statuses, and an option of several words."""

from __future__ import annotations

from typing import Any

PASSED, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

# An option that takes several words, and may be repeated.
MANY: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
