"""Running the command line in tests: in this process, or in one of its own where the process matters."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import Array, Weight, model, run
from numpy.typing import NDArray
from onnx import ModelProto

from onnxdpp.__main__ import _run

DIGITS = Path(__file__).parents[1] / "samples" / "digits"


@dataclass(frozen=True)
class Outcome:
    """What one invocation left behind."""

    code: int
    out: str
    err: str


def invoke(capfd: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run `onnxdpp` with these arguments in this process."""
    capfd.readouterr()
    code = _run([str(argument) for argument in arguments])
    return Outcome(code, *capfd.readouterr())


def refusal(outcome: Outcome, code: int) -> str:
    """The one line on stderr that an invocation ended with."""
    assert (outcome.code, outcome.out) == (code, ""), outcome
    assert outcome.err.startswith("onnxdpp: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.endswith("\n"), outcome.err
    return outcome.err


def spawn(*arguments: object, env: Mapping[str, str | None] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start `python -m onnxdpp`; of `env`, None takes a variable away."""
    environment = {**os.environ, "PYTHONUNBUFFERED": None, **(env or {})}
    return subprocess.Popen(
        [sys.executable, "-m", "onnxdpp", *map(str, arguments)],
        env={name: value for name, value in environment.items() if value is not None},
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def execute(*arguments: object, env: Mapping[str, str | None] | None = None, **options: Any) -> Outcome:
    """Run `python -m onnxdpp` to its end."""
    process = spawn(*arguments, env=env, **options)
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, *(text.decode(errors="replace") for text in (out or b"", err or b"")))


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Fail if any file below a folder comes, goes or changes."""
    before = contents(folder)
    yield
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every name below a folder, with its bytes where it is a file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def mlp(
    text: str = """
        mlp (float[N, 8] x) => (float[N, 3] y) {
            [fc1] a = Gemm(x, w1, b1)
            p = Relu(a)
            [fc2] c = Gemm(p, w2, b2)
            q = Tanh(c)
            [fc3] y = Gemm(q, w3, b3)
        }""",
    **weights: Weight,
) -> ModelProto:
    """Gemm, Relu, Gemm, Tanh, Gemm, or another text over its constants. Layers: fc1 (16), fc2 (12)."""
    shapes: dict[str, Weight] = {
        "w1": (8, 16), "b1": (16,), "w2": (16, 12), "b2": (12,), "w3": (12, 3), "b3": (3,),
    }  # fmt: skip
    return model(text, **{name: weight for name, weight in {**shapes, **weights}.items() if name in text})


def data(rows: int = 64, *shape: int, seed: int = 1) -> NDArray[np.float32]:
    """Calibration rows, of 8 values where no other shape is given."""
    return np.random.default_rng(seed).standard_normal((rows, *(shape or (8,)))).astype(np.float32)


def stored(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def answers(path: Path, **feeds: Array) -> list[Any]:
    """What onnxruntime says to these inputs."""
    return run(onnx.load(path), feeds)
