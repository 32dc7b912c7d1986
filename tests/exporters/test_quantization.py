"""Prune first, quantize then: onnxruntime's quantizers take pruned files, and the accuracy is kept."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Array, run
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import onnxdpp

DIGITS = Path(__file__).parents[2] / "samples" / "digits"


class Calibration(CalibrationDataReader):
    """The calibration rows of the sample, in batches."""

    def __init__(self) -> None:
        self.batches: Iterator[Array] = iter(np.array_split(np.load(DIGITS / "calib.npz")["input"], 10))

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def static(source: Path, target: Path, **options: object) -> None:
    quantize_static(source, target, Calibration(), activation_type=QuantType.QUInt8, **options)


QUANTIZERS: dict[str, Callable[[Path, Path], None]] = {
    "dynamic": quantize_dynamic,
    "QDQ": partial(static, quant_format=QuantFormat.QDQ),
    "QDQ, per channel": partial(static, quant_format=QuantFormat.QDQ, per_channel=True),
    "QOperator": partial(static, quant_format=QuantFormat.QOperator),
}


def accuracy(model: onnx.ModelProto) -> float:
    with np.load(DIGITS / "test.npz") as arrays:
        return float((run(model, {"input": arrays["input"]})[0].argmax(1) == arrays["labels"]).mean())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample at a quarter of its neurons."""
    path = tmp_path_factory.mktemp("quantization") / "pruned.onnx"
    onnxdpp.prune(DIGITS / "model.onnx", DIGITS / "calib.npz", keep=0.25, provider="cpu").save(path)
    return path


@pytest.mark.parametrize("name", QUANTIZERS)
def test_pruned_file_keeps_its_accuracy_when_quantized(name: str, pruned: Path, tmp_path: Path) -> None:
    target = tmp_path / "quantized.onnx"
    QUANTIZERS[name](pruned, target)
    dense = accuracy(onnx.load(DIGITS / "model.onnx"))
    assert accuracy(onnx.load(pruned)) >= dense - 0.01
    assert accuracy(onnx.load(target)) >= dense - 0.015
    assert target.stat().st_size < 0.4 * pruned.stat().st_size
