"""Perceptrons of scikit-learn, exported by skl2onnx with their ZipMaps, beside ones with the same neurons removed."""

from copy import deepcopy
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import pytest
from models import Array, normal, run
from narrowing import Cut, Hidden, halved, keeps_of, narrowed
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

skl2onnx = pytest.importorskip("skl2onnx")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROWS = normal(300, 6)

CLASSES = np.digitize(ROWS[:, 0] * ROWS[:, 1] + ROWS[:, 2], [-1, 1])

NAMES = np.array(["few", "some", "many"])

two_layers: Any = partial(MLPClassifier, (24, 20), max_iter=20, random_state=0)
one_layer: Any = partial(MLPClassifier, (24,), max_iter=20, random_state=0)

ESTIMATORS = {
    "relu": (two_layers(), CLASSES),
    "names of classes": (two_layers(activation="tanh"), NAMES[CLASSES]),
    "two classes": (one_layer(activation="logistic"), CLASSES > 1),
    "scaled": (make_pipeline(StandardScaler(), two_layers()), CLASSES),
    "regressor": (MLPRegressor(hidden_layer_sizes=(24, 20), max_iter=20, random_state=0), ROWS[:, 0]),
}

OPSETS = [11, 15, 18]


@cache
def fitted(name: str) -> Any:
    estimator, target = ESTIMATORS[name]
    return estimator.fit(ROWS, target)


def layers(perceptron: Any) -> list[Hidden]:
    widths = [len(bias) for bias in perceptron.intercepts_[:-1]]
    return [
        Hidden(width, [Cut(f"w{index}", 1), Cut(f"b{index}", 0), Cut(f"w{index + 1}", 0)])
        for index, width in enumerate(widths)
    ]


def without(estimator: Any, report: dict[str, Any]) -> Any:
    """A copy that has lost the neurons that `report` does not keep."""
    result = deepcopy(estimator)
    perceptron = result[-1] if hasattr(result, "steps") else result
    hidden = layers(perceptron)
    weights: dict[str, Array] = {f"w{index}": array for index, array in enumerate(perceptron.coefs_)}
    biases: dict[str, Array] = {f"b{index}": array for index, array in enumerate(perceptron.intercepts_)}
    left = narrowed(weights | biases, hidden, keeps_of(report, hidden))
    perceptron.coefs_, perceptron.intercepts_ = [left[key] for key in weights], [left[key] for key in biases]
    return result


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_pruned_file_answers_as_the_narrower_perceptron(name: str, opset: int) -> None:
    estimator = fitted(name)
    proto: onnx.ModelProto = skl2onnx.to_onnx(estimator, ROWS[:1], target_opset=opset)
    result = halved(proto, {"X": ROWS}, refit="none")
    narrow = without(estimator, result.report)
    if name == "regressor":
        (found,) = run(result.model, {"X": ROWS})
        np.testing.assert_allclose(found[:, 0], narrow.predict(ROWS), rtol=1e-4, atol=1e-5)
        return
    labels, maps = run(result.model, {"X": ROWS})
    found, expected = np.array([[row[label] for label in narrow.classes_] for row in maps]), narrow.predict_proba(ROWS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    clear = np.ptp(np.sort(expected)[:, -2:], axis=1) > 1e-4
    np.testing.assert_array_equal(labels[clear], narrow.predict(ROWS)[clear])


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "regressor"])
def test_zipmap_and_labels_are_left_as_they_were(name: str) -> None:
    proto = skl2onnx.to_onnx(fitted(name), ROWS[:1], target_opset=15)
    pruned = halved(proto, {"X": ROWS}).model
    assert [node for node in pruned.graph.node if node.domain] == [node for node in proto.graph.node if node.domain]
    assert "ZipMap" in [node.op_type for node in pruned.graph.node]
    assert pruned.graph.output == proto.graph.output
