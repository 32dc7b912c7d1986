"""A sigmoid multilayer perceptron in NumPy: train by SGD, export as ONNX. Shared by the samples.

The network is ``logits = W_L s(... s(W_1 x + b_1) ...) + b_L`` with ``s(z) = 1 / (1 + exp(-z))``; the loss is
the cross-entropy of ``softmax(logits)``, averaged over the minibatch. With activations ``A_l`` (rows are
examples) and ``D_l`` the gradient at the pre-activations of layer l::

    D_L = (softmax(logits) - onehot(y)) / r        D_l = (D_{l+1} W_{l+1}) * A_l * (1 - A_l)
    dW_l = D_l' A_{l-1}                            db_l = sum of the rows of D_l

and the step is ``V <- momentum V + gradient``, ``parameter <- parameter - rate V``. Weights start
Xavier-uniform, biases at zero. Everything is float32. Given the seed, the same NumPy and the same BLAS on the
same kind of processor give the same bytes; another BLAS build, or another number of its threads, may differ
in the last bits, and training amplifies these.

`write` leaves the three files that `benchmark.py` and `passes.py` read: ``model.onnx``, ``calib.npz`` (array
``input`` only) and ``test.npz`` (``input``, ``labels``).

References
----------
X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks",
AISTATS 2010 (the start).
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Parameters = list[tuple[Array, Array]]
"""One (weight (m, n), bias (m,)) per layer, first to last; the weight as PyTorch stores it."""

OPSET = 17
IR_VERSION = 8  # the one of opset 17: onnxruntimes older than the installed onnx can read the file


def initial(widths: Sequence[int], rng: np.random.Generator, gain: float = 1.0) -> Parameters:
    """Draw Xavier-uniform weights, ``U(-a, a)`` with ``a = gain sqrt(6 / (n + m))``, and zero biases."""
    parameters = []
    for n, m in itertools.pairwise(widths):
        bound = gain * np.sqrt(6.0 / (n + m))
        weight = rng.uniform(-bound, bound, size=(m, n)).astype(np.float32)
        parameters.append((weight, np.zeros(m, np.float32)))
    return parameters


def activations(parameters: Parameters, x: Array) -> list[Array]:
    """Return what leaves each layer for the rows of `x`: the hidden values after the sigmoid, then logits."""
    values = []
    for layer, (weight, bias) in enumerate(parameters):
        x = x @ weight.T + bias
        if layer < len(parameters) - 1:
            x = np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)  # exp would overflow
        values.append(x)
    return values


def accuracy(parameters: Parameters, x: Array, labels: Labels) -> float:
    """Return the fraction of rows of `x` whose largest logit is at the label."""
    blocks = range(0, len(x), 4096)
    hits = sum(
        int((activations(parameters, x[i : i + 4096])[-1].argmax(1) == labels[i : i + 4096]).sum()) for i in blocks
    )
    return hits / len(x)


def epochs(
    parameters: Parameters,
    x: Array,
    labels: Labels,
    rng: np.random.Generator,
    *,
    rate: float,
    momentum: float = 0.9,
    batch: int = 128,
) -> Iterator[Parameters]:
    """Train without end, yielding the parameters after each pass over the shuffled rows.

    The last batch of a pass may be short. The yielded arrays are the trainer's own and change with the next
    epoch; those of `parameters` stay as they are.
    """
    parameters = [(weight.copy(), bias.copy()) for weight, bias in parameters]
    velocities = [(np.zeros_like(weight), np.zeros_like(bias)) for weight, bias in parameters]
    while True:
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            gradients = _gradients(parameters, x[rows], labels[rows])
            for values, speeds, slopes in zip(parameters, velocities, gradients, strict=True):
                for value, velocity, gradient in zip(values, speeds, slopes, strict=True):
                    velocity[...] = np.float32(momentum) * velocity + gradient
                    value[...] -= np.float32(rate) * velocity
        yield parameters


def _gradients(parameters: Parameters, x: Array, labels: Labels) -> Parameters:
    """Return the gradient of the mean cross-entropy, in the shape of `parameters`."""
    values = activations(parameters, x)
    logits = values[-1]
    delta = np.exp(logits - logits.max(1, keepdims=True))
    delta /= delta.sum(1, keepdims=True)
    delta[np.arange(len(x)), labels] -= 1
    delta /= np.float32(len(x))
    gradients: Parameters = []
    for layer in reversed(range(len(parameters))):
        below = values[layer - 1] if layer else x
        gradients.append((delta.T @ below, delta.sum(0)))
        if layer:
            delta = (delta @ parameters[layer][0]) * below * (1 - below)
    return gradients[::-1]


def to_onnx(parameters: Parameters, name: str) -> onnx.ModelProto:
    """Return the network as Gemm (transB=1) and Sigmoid nodes: fc1, sigmoid1, fc2, ...

    Input ``input`` (batch, n) and output ``logits`` (batch, classes) are float32, ``batch`` is dynamic; the
    initializers are called ``fc1.weight``, ``fc1.bias``, ...
    """
    nodes, initializers = [], []
    value, last = "input", len(parameters)
    for layer, (weight, bias) in enumerate(parameters, start=1):
        fc = f"fc{layer}"
        initializers.append(numpy_helper.from_array(weight, f"{fc}.weight"))
        initializers.append(numpy_helper.from_array(bias, f"{fc}.bias"))
        out = "logits" if layer == last else f"{fc}.out"
        nodes.append(helper.make_node("Gemm", [value, f"{fc}.weight", f"{fc}.bias"], [out], name=fc, transB=1))
        if layer < last:
            value = f"sigmoid{layer}.out"
            nodes.append(helper.make_node("Sigmoid", [out], [value], name=f"sigmoid{layer}"))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", parameters[0][0].shape[1]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", parameters[-1][0].shape[0]])],
        initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onnxdpp samples",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def write(
    folder: Path,
    model: onnx.ModelProto,
    calib: Array,
    test: Array,
    labels: Labels,
    *,
    compress: bool,
) -> None:
    """Write ``model.onnx``, ``calib.npz`` and ``test.npz`` into `folder`, which is made where it is missing.

    NumPy dates all members of an npz 1980-01-01, so equal arrays give equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compress else np.savez
    onnx.save(model, folder / "model.onnx")
    save(folder / "calib.npz", input=calib)
    save(folder / "test.npz", input=test, labels=labels)
