"""Errors that a user can fix: one sentence that says what happened and what to do, and an exit code.

The command line prints the sentence on one line of stderr and exits with `exit_code`:
1 the disk or the system failed, 2 bad usage, 3 bad config or damaged file, 4 missing optional package, 5 numeric failure or a
fault of a user's environment, agent or objective, 6 of a user's reward, 129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from experiments.cli.text import plain


class UserError(Exception):
    """A fault whose message is meant for the person at the terminal; `exit_code` is what the process should end with."""

    exit_code = 2

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(plain(message, keep="\n"))  # it may quote a name from a file
        if exit_code is not None:
            self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[UserError], tuple[str, int]]:
        """Cross to another process as the sentence and its exit code, whatever a subclass is made of."""
        return UserError, (str(self), self.exit_code)


def guarded(work: Callable[[], None], debug: bool = False, program: str = "pgrl") -> None:
    """Runs a command; faults become one line on stderr and an exit code."""
    try:
        work()
        if sys.stdout is not None:  # it was closed
            sys.stdout.flush()  # here, where a full disk is a sentence
    except (UserError, ImportError) as error:
        if debug:
            raise
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"{program}: {plain(str(error), keep=chr(10))}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code if isinstance(error, UserError) else MissingPackage.exit_code) from None
    except BrokenPipeError:
        forget_output()
        raise SystemExit(1) from None
    except (OSError, MemoryError) as error:
        if debug:
            raise
        if isinstance(error, MemoryError):
            said = f"there is not enough memory: {error}" if str(error) else "there is not enough memory"
        elif error.filename is None:
            forget_output()
            said = f"could not write: {error.strerror or error}"
        else:
            said = f"{error.filename}: {error.strerror or error}"
        with contextlib.suppress(OSError):
            print(f"{program}: {plain(said)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def forget_output() -> None:
    """Python tries once more at exit to write what standard output did not take, and complains at length: let it go nowhere."""
    with contextlib.suppress(OSError, AttributeError):  # the latter where it was closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class MissingPackage(UserError):
    """An optional package is not installed; the message holds the command that installs it."""

    exit_code = 4

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'pgrl[{extra}]'")
