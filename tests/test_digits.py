"""The sample network: what must be left of its test accuracy."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxdpp

DIGITS = Path(__file__).parents[1] / "samples" / "digits"


def accuracy(model: onnx.ModelProto) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with np.load(DIGITS / "test.npz") as arrays:
        (name,) = set(arrays.files) - {"labels"}
        answers = session.run(None, {name: arrays[name]})[0]
        return float((answers.argmax(1) == arrays["labels"]).mean())


@pytest.fixture(scope="module")
def dense() -> float:
    return accuracy(onnx.load(DIGITS / "model.onnx"))


def test_dense_network_is_worth_pruning(dense: float) -> None:
    assert dense > 0.96


@pytest.mark.parametrize(
    ("unit", "keep", "lost"), [("neuron", 0.1, 0.013), ("neuron", 0.05, 0.023), ("edge", 0.1, 0.013)]
)
def test_defaults_hold_the_test_accuracy(unit: str, keep: float, lost: float, dense: float) -> None:
    result = onnxdpp.prune(DIGITS / "model.onnx", DIGITS / "calib.npz", keep=keep, unit=unit)
    widths = [(layer["width"], layer["kept"]) for layer in result.report["layers"]]
    kept = int(500 * keep)
    assert widths == ([(500, kept)] * 2 if unit == "neuron" else [(64, 6), (500, kept), (500, kept)])
    assert accuracy(result.model) >= dense - lost
    size = result.report["model"]
    # neurons and edges alike: at most this share of the weights is left
    assert size["after"]["nonzero"] < 1.2 * keep * size["before"]["nonzero"]
