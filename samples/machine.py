"""What the tables say about the machine that they were measured on. Imports nothing large (see passes.py)."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """Return the processor's name as the system gives it, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"
