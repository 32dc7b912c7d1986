"""One model alone in a process: load it, run it, print the peak memory. A script, which imports nothing of onnxdpp.

    python -P alone.py MODEL FEEDS.npz NAMES cpu|cuda THREADS

NAMES are those of the inputs, in the order of the arrays in FEEDS.npz, as JSON.

Prints two numbers of bytes of resident memory: at the peak, and before the model was loaded. On Linux they are those of
this process alone; what ``getrusage`` gives there would begin with the size of the parent.
"""

import json
import os
import sys
from pathlib import Path


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
    with np.load(feeds) as arrays:
        batch = {name: arrays[f"arr_{place}"] for place, name in enumerate(json.loads(names))}
    before = peak()
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    session.run(None, batch)
    print(peak(), before)


if __name__ == "__main__":
    main(*sys.argv[1:])
