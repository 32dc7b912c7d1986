"""What a model's files take when they are compressed for shipping, and what the model takes to load and to run."""

import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdpp import alone
from onnxdpp.errors import MachineError, ModelError

LEVEL = 6  # of the gzip command
BLOCK = 1 << 20
HEADER = 18  # of a gzip file: header without a name, and trailer
PATIENCE = 600.0


@dataclass(frozen=True)
class Memory:
    """Of a process that does nothing but load a model and run one batch.

    Attributes
    ----------
    peak : int
        Most bytes of resident memory at any time, with interpreter and runtime.
    start : int
        The same before the model was loaded.
    load_seconds : float
        What loading the model takes: the least of a few times.
    """

    peak: int
    start: int
    load_seconds: float


def compressed(files: Iterable[Path]) -> int:
    """Bytes of these files, each by itself in gzip's default compression and without its name.

    Raises
    ------
    ModelError
        If one cannot be read.
    """
    total = 0
    for path in files:
        packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        try:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    total += len(packer.compress(block))
        except OSError as error:
            raise ModelError(f"The model's files cannot be read: {error.strerror or error}.") from error
        total += len(packer.flush()) + HEADER
    return total


def peak_memory(path: Path, feeds: Mapping[str, NDArray[Any]] | None, provider: str, threads: int) -> Memory:
    """Peak memory, and load time, of a process of its own that loads a model file and runs one batch.

    Parameters
    ----------
    path : path
    feeds : mapping of arrays, or None
        By input name. None: the model is loaded and not run.
    provider : {"cpu", "cuda"}
        On CUDA too, it is the memory of the process, not of the device.
    threads : int

    Raises
    ------
    MachineError
        If the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="onnxdpp-") as folder:
        stored = Path(folder) / "feeds.npz"
        names = json.dumps(None if feeds is None else [*feeds])
        command = [sys.executable, "-P", alone.__file__, str(path.absolute()), str(stored), names]
        command += [provider, str(threads)]
        try:
            np.savez(stored, *(feeds or {}).values())
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError) as error:
            raise MachineError(" ".join(str(error).split())[:200]) from error
        try:
            peak, start, seconds = done.stdout.split()[-3:]
            return Memory(int(peak), int(start), float(seconds))
        except ValueError:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise MachineError(said[-1][:200] if said else f"its process ended with {done.returncode}") from None
