"""Faults at chosen moments, for every Python process that has this folder on its PYTHONPATH.

When a process opens a file P, or gives a finished file its name P, it looks for `P.fault`, which
says in words what is to happen at that moment:

    kill      the process kills itself
    hold      it leaves `P.held` with its process id, and waits until the fault is taken away
    note      it adds a line with its process id to `P.noted`
    7         nothing but notes until there are seven of them
    worker    only Ray's workers are meant, not the driver
    once      only the first process that comes by; the fault goes away with it
"""

# This runs at the start of every process and at every file it opens: no pathlib.
# ruff: noqa: PTH108, PTH110, PTH123

import os
import signal
import sys
import time

POLL_SECONDS = 0.02


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        path = arguments[0]
    elif event in ("os.link", "os.rename"):
        path = arguments[1]
    else:
        return
    if not isinstance(path, (str, os.PathLike)):
        return
    fault = os.fspath(path) + ".fault"
    if isinstance(fault, str) and os.path.exists(fault):
        _meet(fault)


def _meet(fault: str) -> None:
    try:
        with open(fault) as file:
            words = file.read().split()
        if "worker" in words and not sys.argv[0].endswith("default_worker.py"):
            return
        if "once" in words:
            os.unlink(fault)
    except FileNotFoundError:  # somebody else met it
        return
    path = fault.removesuffix(".fault")
    if "note" in words:
        _write(path + ".noted")
    if any(word.isdigit() and _lines(path + ".noted") < int(word) for word in words):
        return
    if "kill" in words:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hold" in words:
        _write(path + ".held")
        while os.path.exists(fault):
            time.sleep(POLL_SECONDS)


def _lines(path: str) -> int:
    with open(path) as file:
        return len(file.readlines())


def _write(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


sys.addaudithook(_watch)
