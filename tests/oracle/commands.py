"""Commands with faults: `python commands.py NAME`. Without one it answers each SMILES with its length."""

import os
import sys
import time


def lines():
    return (line.strip() for line in sys.stdin)


def say(text):
    print(text, flush=True)


def good():
    for smiles in lines():
        say(len(smiles))


def dies():
    next(lines())
    sys.exit(3)


def ends_after_each():
    say(len(next(lines())))


def killed():
    for smiles in lines():
        if "N" in smiles:
            os.kill(os.getpid(), 9)
        say(len(smiles))


def hangs():
    for smiles in lines():
        time.sleep(3600 if "N" in smiles else 0)
        say(len(smiles))


def never_flushes():
    for smiles in lines():
        print(len(smiles))


def two_lines():
    for smiles in lines():
        say(f"{len(smiles)}\n7")


def two_flushes():
    for smiles in lines():
        say(len(smiles))
        time.sleep(0.005)
        say(7)


def garbage():
    for _ in lines():
        say("score: \x1b[1m5")


def empty():
    for _ in lines():
        say("")


def nan():
    for _ in lines():
        say("nan")


def says_error():
    for smiles in lines():
        say("error: no pose" if "N" in smiles else len(smiles))


def no_line_end():
    for _ in lines():
        while True:
            sys.stdout.write("1" * 100_000)


def prints_at_start():
    say("Welcome")
    good()


def noisy():
    print("loading", file=sys.stderr)
    good()


def says_pid():
    for _ in lines():
        say(os.getpid())


globals()[sys.argv[1] if len(sys.argv) > 1 else "good"]()
