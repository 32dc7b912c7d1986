"""On a machine where onnxruntime really runs on CUDA: `pytest -m gpu`."""

from pathlib import Path

import numpy as np
import pytest

import onnxdpp
from onnxdpp.graph.calibration import choose_provider

pytestmark = pytest.mark.gpu
DIGITS = Path(__file__).parents[1] / "samples" / "digits"


def test_provider_auto_takes_cuda():
    assert choose_provider("auto")[0] == "cuda"


@pytest.mark.parametrize("unit", ["neuron", "edge"])
def test_prune_on_cuda_loses_as_much_as_on_the_cpu(unit):
    results = {
        provider: onnxdpp.prune(
            DIGITS / "model.onnx", DIGITS / "calib.npz", keep=0.25, unit=unit, provider=provider
        ).report
        for provider in ("cpu", "cuda")
    }
    assert results["cuda"]["provider"] == "cuda"
    losses = {name: [layer["loss"] for layer in report["layers"]] for name, report in results.items()}
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=0.05)


def test_prune_on_cuda_gives_the_same_bytes_twice():
    runs = [onnxdpp.prune(DIGITS / "model.onnx", DIGITS / "calib.npz", keep=0.5, provider="cuda") for _ in range(2)]
    assert runs[0].report["model"]["after"]["sha256"] == runs[1].report["model"]["after"]["sha256"]
