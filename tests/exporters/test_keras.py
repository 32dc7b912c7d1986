"""Models that Keras exports on TensorFlow, by its own export and by tf2onnx, beside narrower Keras models.

TensorFlow's images are NHWC and ONNX's NCHW: convolutions stand between Transpose nodes, and flattening goes by pixels.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import onnx
import pytest
from models import Array, normal, run
from narrowing import Case, Cut, Hidden, halved, keeps_of, narrowed, reasons, refit_helps

tensorflow = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
tf2onnx = pytest.importorskip("tf2onnx")

from keras import Input, Model, layers  # noqa: E402

gelu = partial(keras.activations.gelu, approximate=True)  # tf2onnx does not know the exact one


# Models: the widths of the hidden layers are their arguments


def mlp(a: int = 24, b: int = 20) -> Any:
    x = Input((6,))
    y = layers.Dense(b, activation="elu", name="fc2")(layers.Dense(a, activation="relu", name="fc1")(x))
    return Model(x, layers.Dense(3, activation="softmax", name="fc3")(y))


def cnn(a: int = 8, b: int = 12, c: int = 10) -> Any:
    x = Input((8, 8, 3))
    y = layers.Conv2D(a, 3, padding="same", name="conv1")(x)
    y = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization(name="norm1")(y)))
    y = layers.Conv2D(b, 3, use_bias=False, name="conv2")(y)
    y = layers.Flatten()(layers.Activation("swish")(layers.BatchNormalization(name="norm2")(y)))
    return Model(x, layers.Dense(3, name="fc2")(layers.Dense(c, activation="relu", name="fc1")(y)))


def depthwise(a: int = 8, b: int = 12) -> Any:
    x = Input((8, 8, 3))
    y = layers.Conv2D(a, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization(name="norm1")(y))
    y = layers.DepthwiseConv2D(3, padding="same", name="depth1")(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization(name="norm2")(y))
    y = layers.ReLU(6.0)(layers.BatchNormalization(name="norm3")(layers.Conv2D(b, 1, name="point1")(y)))
    return Model(x, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(y)))


def residual(a: int = 8, b: int = 6) -> Any:
    x = Input((8, 8, 3))
    y = layers.ReLU()(layers.BatchNormalization(name="norm")(layers.Conv2D(a, 3, padding="same", name="stem")(x)))
    z = layers.Conv2D(b, 3, padding="same", name="conv1")(y)
    z = layers.Conv2D(a, 3, padding="same", name="conv2")(layers.ReLU()(layers.BatchNormalization(name="norm1")(z)))
    y = layers.ReLU()(layers.add([y, layers.BatchNormalization(name="norm2")(z)]))
    return Model(x, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(y)))


def swiglu(a: int = 24) -> Any:
    x = Input((6,))
    gate = layers.Dense(a, activation="silu", use_bias=False, name="gate")(x)
    return Model(x, layers.Dense(3, name="down")(gate * layers.Dense(a, use_bias=False, name="up")(x)))


def transformer(a: int = 24) -> Any:
    x = Input((7, 16))
    y = layers.LayerNormalization(name="norm1")(x + layers.MultiHeadAttention(2, 8, name="attend")(x, x))
    z = layers.Dense(16, name="fc2")(layers.Dense(a, activation=gelu, name="fc1")(y))
    return Model(x, layers.LayerNormalization(name="norm2")(y + z))


def recurrent(a: int = 10) -> Any:
    x = Input((5, 6))
    y = layers.LSTM(8, name="lstm")(x)
    return Model(x, layers.Dense(3, name="fc2")(layers.Dense(a, activation="relu", name="fc1")(y)))


def outputs(*names: str, axis: int = -1) -> list[Cut]:
    """Outputs of layers with biases."""
    return [cut for name in names for cut in (Cut(f"{name}/kernel", axis), Cut(f"{name}/bias", 0))]


def inputs(*names: str) -> list[Cut]:
    return [Cut(f"{name}/kernel", -2) for name in names]


def norm(*names: str) -> list[Cut]:
    return [Cut(f"{name}/{part}", 0) for name in names for part in ("gamma", "beta", "moving_mean", "moving_variance")]


def by_pixels(channels: int) -> Callable[[Array], Array]:
    """Where channels lie in four flattened NHWC pixels."""
    return lambda neurons: np.arange(4)[:, None] * channels + neurons


IMAGES, ROWS = normal(200, 8, 8, 3), normal(200, 6)

CASES = {
    "mlp": Case(mlp, ROWS, [
        Hidden(24, [*outputs("fc1"), *inputs("fc2")]),
        Hidden(20, [*outputs("fc2"), *inputs("fc3")]),
    ]),
    "cnn": Case(cnn, IMAGES, [
        Hidden(8, [*outputs("conv1"), *norm("norm1"), *inputs("conv2")]),
        Hidden(12, [Cut("conv2/kernel", -1), *norm("norm2"), Cut("fc1/kernel", 0, by_pixels(12))]),
        Hidden(10, [*outputs("fc1"), *inputs("fc2")]),
    ]),
    "depthwise": Case(depthwise, IMAGES, [
        Hidden(8, [Cut("stem/kernel", -1), *outputs("depth1", axis=-2), *norm("norm1", "norm2"), *inputs("point1")]),
        Hidden(12, [*outputs("point1"), *norm("norm3"), *inputs("head")]),
    ]),
    "residual": Case(residual, IMAGES, [
        Hidden(8, [*outputs("stem", "conv2"), *norm("norm", "norm2"), *inputs("conv1", "head")]),
        Hidden(6, [*outputs("conv1"), *norm("norm1"), *inputs("conv2")]),
    ]),
    "swiglu": Case(swiglu, ROWS, [Hidden(24, [Cut("gate/kernel", 1), Cut("up/kernel", 1), *inputs("down")])]),
    "transformer": Case(transformer, normal(200, 7, 16), [Hidden(24, [*outputs("fc1"), *inputs("fc2")])], opset=13),
    "recurrent": Case(recurrent, normal(200, 5, 6), [Hidden(10, [*outputs("fc1"), *inputs("fc2")])]),
}  # fmt: skip


# Exporters


def by_keras(model: Any) -> onnx.ModelProto:
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        model.export(path, format="onnx", verbose=False)
        return onnx.load(path)


def by_tf2onnx(model: Any, opset: int) -> onnx.ModelProto:
    signature = [tensorflow.TensorSpec(model.input.shape, tensorflow.float32, "input")]
    return tf2onnx.convert.from_function(tensorflow.function(model), input_signature=signature, opset=opset)[0]


EXPORTERS: dict[str, Callable[[Any], onnx.ModelProto]] = {
    "keras": by_keras,
    "tf2onnx 13": partial(by_tf2onnx, opset=13),
    "tf2onnx 18": partial(by_tf2onnx, opset=18),
}


@cache
def built(name: str) -> Any:
    """The model with random biases, norms and running statistics."""
    keras.utils.set_random_seed(0)
    model = CASES[name].make()
    model(CASES[name].rows[:2])  # Keras exports what was called
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


@cache
def exported(name: str, exporter: str) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of what NumPy will do
        return EXPORTERS[exporter](built(name))


def without(name: str, report: dict[str, Any]) -> Any:
    """The model made anew, with as many neurons as `report` keeps and their weights."""
    case = CASES[name]
    keeps = keeps_of(report, case.layers)
    weights = {variable.path: variable.numpy() for variable in built(name).weights}
    model = case.make(*case.widths(keeps))
    model.set_weights(list(narrowed(weights, case.layers, keeps).values()))
    return model


PAIRS = [
    pytest.param(name, exporter, id=f"{name}-{exporter}")
    for name, case in CASES.items()
    for exporter in EXPORTERS
    if exporter == "keras" or int(exporter.split()[1]) >= case.opset
]


@pytest.mark.parametrize(("name", "exporter"), PAIRS)
def test_pruned_file_answers_as_the_narrower_model(name: str, exporter: str) -> None:
    proto, rows = exported(name, exporter), CASES[name].rows
    result = halved(proto, {proto.graph.input[0].name: rows}, refit="none")
    (found,) = run(result.model, {proto.graph.input[0].name: rows[:9]})
    np.testing.assert_allclose(found, without(name, result.report)(rows[:9]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "exporter"), PAIRS)
def test_refit_helps(name: str, exporter: str) -> None:
    proto = exported(name, exporter)
    assert refit_helps(proto, {proto.graph.input[0].name: CASES[name].rows})


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_lstm_is_refused_as_recurrent(exporter: str) -> None:
    (reason,) = {reason for name, reason in reasons(exported("recurrent", exporter)).items() if "lstm" in name.lower()}
    assert "recurrent" in reason
