"""Rewards with faults, a function each; every call is noted in the file `asked` beside this one."""

import contextlib
import math
import os
import signal
import sys
import time
from pathlib import Path

ASKED = Path(__file__).with_name("asked")


def note(smiles):
    handle = os.open(ASKED, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, "".join(f"{s}\n" for s in smiles).encode())
    os.close(handle)


def good(smiles):
    note(smiles)
    return [len(s) for s in smiles]


def faulty(smiles):
    """Of the number N in [NCH4]: the last two digits decide, 0 to 4 hang, 5 to 9 crash, 10 to 14 NaN."""
    note(smiles)
    values = []
    for s in smiles:
        kind = int(s[1 : s.index("C")]) % 100 // 5
        if kind == 0:
            time.sleep(3600)
        if kind == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        values.append(math.nan if kind == 2 else 1.0)
    return values


def numpy_floats(smiles):
    import numpy as np

    return np.array([len(s) for s in smiles], dtype=np.float32)


def nan(smiles):
    return [math.nan for _ in smiles]


def infinite(smiles):
    return [math.inf for _ in smiles]


def text(smiles):
    return ["0.5" for _ in smiles]


def none(smiles):
    return [None for _ in smiles]


def complex_numbers(smiles):
    return [1j for _ in smiles]


def nested(smiles):
    return [[1.0, 2.0] for _ in smiles]


def too_many(smiles):
    return [1.0] * (len(smiles) + 1)


def huge(smiles):
    return [1.0] * 3_000_000


def endless(smiles):
    while True:
        yield 1.0


def too_few(smiles):
    return []


def nothing(smiles):
    return None


def one_number(smiles):
    return 1.0


def a_dict(smiles):
    return dict.fromkeys(smiles, 1.0)


def raises(smiles):
    note(smiles)
    raise ValueError("no licence\nfor this")


def exits(smiles):
    sys.exit(3)


def interrupted(smiles):
    raise KeyboardInterrupt


def leaves(smiles):
    os._exit(7)


def killed(smiles):
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(smiles):
    note(smiles)
    time.sleep(3600)


def spins(smiles):
    (10**7) ** (10**8)  # one operation of compiled code, which holds the interpreter


def prints(smiles):
    print("hello")
    print('{"seconds": 0, "scored": [9]}')
    os.write(1, b"from C\n")
    os.system("echo from a shell")
    sys.stdin.read()
    return [1.0 for _ in smiles]


def forks(smiles):
    """The forked process goes on as if it were this one."""
    os.fork()
    return [1.0 for _ in smiles]


def leaves_a_fork(smiles):
    """A fork that stays holds what this process held."""
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(7)


def starts(smiles):
    import subprocess

    subprocess.Popen(["sleep", "3600"])
    return [1.0 for _ in smiles]


def closes(smiles):
    os.closerange(3, 256)
    return [1.0 for _ in smiles]


def closes_and_hangs(smiles):
    os.closerange(3, 256)
    time.sleep(3600)


def writes_to_pipes(smiles):
    for handle in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(handle, b"what\n")
    return [1.0 for _ in smiles]


def says_where(smiles):
    return [float(os.getpid()) for _ in smiles]


def slow(smiles):
    note(smiles)
    time.sleep(0.05)
    return [len(s) for s in smiles]


def waits(smiles):
    """For the file `go` from the ninth molecule on."""
    note(smiles)
    while len(ASKED.read_text().split()) > 8 and not ASKED.with_name("go").exists():
        time.sleep(0.02)
    return [len(s) for s in smiles]


def bad_batches(smiles):
    """Hangs for N in any company, and is right about the others alone."""
    note(smiles)
    if "N" in smiles:
        raise ValueError("N")
    return [len(s) for s in smiles]


NOT_A_FUNCTION = 3
