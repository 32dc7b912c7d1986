"""One model alone in a process: load it, run it, print the peak memory. A script, which imports nothing of onnxdpp.

    python -P alone.py MODEL FEEDS.npz NAMES cpu|cuda THREADS

NAMES are those of the inputs, in the order of the arrays in FEEDS.npz, as JSON; ``null``: the model is not run.

Prints two numbers of bytes of resident memory, at the peak and before the model was loaded, and the seconds that
loading takes: the least of a few times, the peak being that of the first. On Linux the bytes are those of this process
alone; what ``getrusage`` gives there would begin with the size of the parent.
"""

import json
import os
import sys
import time
from pathlib import Path

LOADS, ENOUGH = 5, 1.0
"""How often a model is loaded at most; after so many seconds, no more."""


def _status(key: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def peak() -> int:
    """Most bytes of resident memory so far."""
    if sys.platform == "linux":
        return _status("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(model: str, feeds: str, names: str, provider: str, threads: str) -> None:
    """Do it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = int(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CUDAExecutionProvider"] * (provider == "cuda") + ["CPUExecutionProvider"]
    if provider == "cuda":
        onnxruntime.preload_dlls()
    batch = None
    if json.loads(names) is not None:
        with np.load(feeds) as arrays:
            batch = {name: arrays[f"arr_{place}"] for place, name in enumerate(json.loads(names))}

    def load() -> tuple[onnxruntime.InferenceSession, float]:
        began = time.perf_counter()
        session = onnxruntime.InferenceSession(model, options, providers=providers)
        return session, time.perf_counter() - began

    before = peak()
    session, seconds = load()
    if batch is not None:
        session.run(None, batch)
    most = peak()
    del session
    times = [seconds]
    while len(times) < LOADS and sum(times) < ENOUGH:
        times.append(load()[1])
    print(most, before, min(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
