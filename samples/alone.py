"""Run a command in a process of its own, and say how long it took and how much memory it had at its peak.

The peak memory of a child counts from the fork, so it is never reported below that of its parent. Hence a large process
asks this file, which imports nothing large, to start the child:

    python samples/alone.py SECONDS COMMAND ...

prints one JSON object, with the fields of `Run`. A child that takes longer than SECONDS is ended (0: never). Linux or
macOS.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """A process that has ended: exit code (None: out of time), wall seconds, largest resident set in bytes, texts."""

    code: int | None
    seconds: float
    peak: int
    said: str
    complained: str

    @property
    def reason(self) -> str:
        """The last line of its complaint."""
        return next((line for line in reversed(self.complained.splitlines()) if line.strip()), "failed")


def alone(command: Sequence[str | Path], limit: float) -> Run:
    """Run `command` for at most `limit` seconds (0: as long as it takes)."""
    words = [sys.executable, __file__, f"{limit}", *map(str, command)]
    return Run(**json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout))


def main() -> None:
    limit, *command = sys.argv[1:]
    began = time.perf_counter()
    code, said, complained = None, "", ""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=float(limit) or None)
        code, said, complained = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        complained = f"over {float(limit):g} s"
    seconds = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    json.dump({"code": code, "seconds": seconds, "peak": peak, "said": said, "complained": complained}, sys.stdout)


if __name__ == "__main__":
    main()
