"""What the tables say about the machine that they were measured on. Imports nothing large (see passes.py)."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def processor() -> str:
    """Return the processor's name as the system gives it, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def machine_line() -> str:
    """Processor and versions, as a line of a table's head."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxdpp", "onnx", "numpy", "scipy"))
    return f"- machine: {processor()}; Python {platform.python_version()}, {versions}, onnxruntime {_runtime()}"


def _runtime() -> str:
    """Version of onnxruntime, whichever of its builds is installed."""
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
