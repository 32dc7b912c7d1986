"""Every real model, from file to verdict: it prunes, verifies and runs, or is left alone with reasons."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from models import NO_MODELS, Array, manifest, normal, run

import onnxdpp
from onnxdpp import PruneResult
from onnxdpp.errors import ModelError, NothingToPrune
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.index import Graph
from onnxdpp.graph.projections import find_projections

CALIBRATION: dict[str, Any] = {
    "snakers4__silero-vad__model_micro.onnx": {"input": normal(6, 4000)},
    "snakers4__silero-vad__silero_vad_16k_op15.onnx": [
        {"input": normal(4, 512, seed=seed), "state": normal(2, 4, 128, seed=seed), "sr": np.array(16000)}
        for seed in range(2)
    ],
}
"""What `random:10` does not suit: the paddings of these need more samples than 32."""

NOTHING_AT_ALL = ["onnx__sklearn-onnx__rf_iris.onnx"]
"""A random forest: there is nothing in it that could even be refused."""

WIDE = [
    "dscripka__openWakeWord__alexa_v0.1.onnx",
    "dscripka__openWakeWord__hey_jarvis_v0.1.onnx",
    "heubert-69__Predicting-Housing-Prices-GUI__mlp_model.onnx",
    "microsoft__onnxruntime-inference-examples__mnist_original.onnx",
    "tracel-ai__burn-onnx__mnist.onnx",
    "yiqide__ai_2048__Goalie.onnx",
    "yiqide__ai_2048__Pyramids.onnx",
    "yiqide__ai_2048__Visual3DBall.onnx",
]
"""Hundreds of inputs and outputs: by edges, each output takes a kernel and a refit as large as its inputs."""

WIDEST = "tracel-ai__burn-onnx__mnist.onnx"
"""11616 inputs: its moments alone take a gigabyte and many seconds, its edges by DPP are not tried."""


def cases(choose: Callable[[str], bool], slow: Callable[[str], bool] = lambda file: False) -> list[Any]:
    files = [row["file"] for row in manifest() if not row["file"].startswith("weights-missing")]
    return [
        pytest.param(file, id=Path(file).stem, marks=[pytest.mark.slow] * slow(file)) for file in files if choose(file)
    ] or [pytest.param("", marks=pytest.mark.skip(reason=NO_MODELS))]


def feeds(model: onnx.ModelProto, file: str) -> dict[str, Array]:
    """Rows that the model was not calibrated on."""
    if isinstance(runs := CALIBRATION.get(file), list):
        return runs[0]
    if file in CALIBRATION:
        return {"input": normal(3, 4000, seed=9)}
    return next(iter(open_batches("random:10", input_specs(model), seed=9))).feeds


def judge(folder: Path, file: str, **options: Any) -> PruneResult | None:
    """Prune `file`: None if it is left alone with reasons; else the result, which passed the checker and ran."""
    calib = CALIBRATION.get(file, "random:10")
    refusals, result = None, None
    try:
        result = onnxdpp.prune(folder / file, calib, keep=0.5, provider="cpu", **options)
    except NothingToPrune as error:
        refusals = error.refusals
    if result is None:
        assert refusals or file in NOTHING_AT_ALL
        assert all(name and reason for name, reason in refusals or ())
        return None
    with TemporaryDirectory() as place:
        written = Path(place) / "out.onnx"
        result.save(written)
        onnx.checker.check_model(written, full_check=True)
        pruned = onnx.load(written)  # external data too
    original = onnx.load(folder / file)
    rows = feeds(original, file)
    for old, new in zip(run(original, rows), run(pruned, rows), strict=True):
        assert len(old) == len(new)
        if isinstance(old, np.ndarray):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
    return result


def judge_edges(folder: Path, file: str, **options: Any) -> None:
    """As `judge`, and in each weight no output has more edges than were to be kept."""
    result = judge(folder, file, **{"unit": "edge", "method": "dpp", "storage": "dense", **options})
    if result is None:
        return
    graph = Graph(result.model, result.folder)
    found = {part.name: part for part in find_projections(graph)[0]}
    for entry in result.report["layers"]:
        part = found[entry["name"]]
        weights = graph.array(graph.name_at(part.weight))
        assert weights is not None
        assert np.count_nonzero(part.effective(weights), axis=0).max() <= entry["kept"]


@pytest.mark.parametrize("file", cases(lambda file: True))
def test_neurons_of_a_real_model(file: str, shared_models: Path) -> None:
    result = judge(shared_models, file, unit="neuron")
    if result is not None:
        before, after = result.report["model"]["before"], result.report["model"]["after"]
        assert all(after[key] < before[key] for key in ("parameters", "nonzero", "bytes", "macs"))


@pytest.mark.parametrize("file", cases(lambda file: file not in WIDE))
def test_edges_of_a_real_model(file: str, shared_models: Path) -> None:
    judge_edges(shared_models, file)


@pytest.mark.parametrize("file", cases(lambda file: file in WIDE, slow=lambda file: file == WIDEST))
def test_edges_of_a_wide_real_model_by_importance(file: str, shared_models: Path) -> None:
    judge_edges(shared_models, file, method="importance", refit="none")


@pytest.mark.slow
@pytest.mark.parametrize("file", cases(lambda file: file in WIDE and file != WIDEST))
def test_edges_of_a_wide_real_model(file: str, shared_models: Path) -> None:
    judge_edges(shared_models, file)


@pytest.mark.parametrize("unit", ["neuron", "edge"])
def test_model_without_its_weights_is_refused(unit: str, shared_models: Path) -> None:
    path = shared_models / "weights-missing__andresmln__MLOps-Lab3__model.onnx"
    with pytest.raises(ModelError, match=r"'model\.onnx\.data' does not exist"):
        onnxdpp.prune(path, "random:10", keep=0.5, unit=unit, provider="cpu")
