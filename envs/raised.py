"""What code of a user raised, in words. Imports only the standard library."""

from __future__ import annotations

import os
import traceback


def raised(error: BaseException) -> str:
    """What code of a user did, for a sentence: raised ValueError: its message (file.py, line 3)."""
    try:
        text = " ".join(str(error).split())[:300]
    except Exception:
        text = "(its message cannot be shown)"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SystemExit):
        return f"called sys.exit({text}){where}"
    return f"raised {type(error).__name__}{': ' if text else ''}{text}{where}"
