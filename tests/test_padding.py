"""What a mask says is padding, of which values; and that padding counts for nothing wherever outputs are compared."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from models import Array, model, normal
from onnx import ModelProto

import onnxdpp
from onnxdpp.errors import UsageError
from onnxdpp.graph.batches import Batch
from onnxdpp.graph.padding import NO_PADDING, Padding, blanked

MASK = np.array([[1, 1, 0], [1, 0, 0]])
OUTPUTS: dict[str, Any] = {"kernel": "linear", "swaps": 0, "provider": "cpu", "mask": "mask"}


def tokens(shift: float = 0.0) -> ModelProto:
    """Three numbers for each token, and one. Layers: fc1 (6)."""
    return model(
        """g (float[N, 5, 4] x, int64[N, 5] mask) => (float[N, 5, 3] y, float[N, 5] s, int64[N, 5] m) {
            m = Identity(mask)
            [fc1] a = MatMul(x, W1)  h = Relu(a)  [fc2] b = MatMul(h, W2)  y = Add(b, shift)
            [fc3] c = MatMul(h, W3)  s = Squeeze(c, last)
        }""",
        W1=(4, 6), W2=(6, 3), W3=(6, 1), last=np.int64([-1]), shift=np.float32([shift] * 3),
    )  # fmt: skip


def scores() -> ModelProto:
    """One number for each token. Layers: fc1 (6)."""
    proto = tokens()
    del proto.graph.output[0]
    return proto


def rows(wild: float | None = None) -> dict[str, Array]:
    """60 rows of 1 to 4 tokens; what stands behind them may be anything."""
    x, mask = normal(60, 5, 4), (np.arange(5) < 1 + np.arange(60)[:, None] % 4).astype(np.int64)
    if wild is not None:
        x = np.where(mask[..., None] == 0, np.float32(wild) * normal(60, 5, 4, seed=9), x)
    return {"x": x, "mask": mask}


# What is padding


@pytest.mark.parametrize(
    ("shape", "output", "said"),
    [
        ((2, 3, 7), None, True),
        ((2, 3, 7), "y", True),
        ((2, 3, 7, 4), None, True),
        ((2, 3), None, False),
        ((2, 3), "y", False),
        ((2, 3), "s", True),
        ((2,), "s", False),
        ((2, 7, 3), None, False),
        ((), "s", False),
    ],
)
def test_mask_speaks_of_values_with_its_axes_in_front(shape: tuple[int, ...], output: str | None, said: bool) -> None:
    found = Padding(tokens(), "mask").of(Batch({"mask": MASK}, 0, 2), normal(*shape), output)
    if said:
        np.testing.assert_array_equal(found, MASK == 0)
    else:
        assert found is None


def test_mask_of_one_number_says_nothing() -> None:
    assert Padding(tokens(), "mask").of(Batch({"mask": np.array(0)}, 0, 2), normal(2, 3)) is None


def test_without_a_mask_nothing_is_padding() -> None:
    assert NO_PADDING.of(Batch({}, 0, 2), normal(2, 3)) is None


def test_blanking_changes_only_padding_and_not_its_argument() -> None:
    x = normal(2, 3, 4)
    before = x.copy()
    found = blanked(x, MASK == 0, 7)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(found, np.where(MASK[..., None] == 0, 7, x))
    assert blanked(x, None) is x


# Where outputs are compared


def discrepancy(wild: float) -> Any:
    return onnxdpp.prune(tokens(), rows(wild), keep=0.5, **OUTPUTS).report["discrepancy"]


def goal(wild: float) -> Any:
    return onnxdpp.prune(tokens(), rows(wild), target_discrepancy=0.7, **OUTPUTS).model


def polished(wild: float) -> Any:
    return onnxdpp.prune(tokens(), rows(wild), keep=0.5, polish=1, **OUTPUTS).model


def gated(wild: float) -> Any:
    data = {"data": rows(wild), "max_discrepancy": 0.5}
    return onnxdpp.prune(tokens(), rows(), keep=0.5, **data, **OUTPUTS).report["evaluation"]["discrepancy"]


def evaluated(wild: float) -> Any:
    options: dict[str, Any] = {"latency": False, "memory": False, "provider": "cpu", "mask": "mask"}
    return onnxdpp.evaluate(tokens(), tokens(0.5), rows(wild), **options)["discrepancy"]


def side_by_side(wild: float) -> Any:
    options: dict[str, Any] = {"keeps": (0.5,), "methods": ["dpp"], "repeat": 1, "provider": "cpu", "mask": "mask"}
    return [run["error"] for run in onnxdpp.compare_methods(tokens(), rows(wild), **options)["runs"]]


def wrong(wild: float) -> Any:
    """The share of rows whose largest score is not at the label's token."""
    data = {**rows(wild), "best": np.arange(60) % 2}
    options: dict[str, Any] = {"keeps": (0.5,), "methods": ["dpp"], "repeat": 1, "provider": "cpu", "mask": "mask"}
    found = onnxdpp.compare_methods(scores(), rows(), data=data, labels="best", **options)
    judged = onnxdpp.evaluate(
        scores(), scores(), data, labels="best", mask="mask", latency=False, memory=False, provider="cpu"
    )
    assert judged["accuracy"]["s"]["before"] == pytest.approx(1 - found["unpruned"], abs=1e-12)
    return [found["unpruned"], *(run["error"] for run in found["runs"])]


def expected(wild: float) -> Any:
    found = onnxdpp.inspect(tokens(), calib=rows(wild), provider="cpu", mask="mask")["layers"]
    return [layer["expected_size"] for layer in found]


def pictured(wild: float) -> Any:
    page = onnxdpp.prune(tokens(), rows(wild), keep=0.5, details=True, **OUTPUTS).html()
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert pictures
    return pictures


@pytest.mark.parametrize(
    "outcome",
    [discrepancy, goal, polished, gated, evaluated, side_by_side, wrong, expected, pictured],
    ids=lambda f: f.__name__,
)
def test_what_stands_in_the_padding_changes_nothing(outcome: Callable[[float], Any]) -> None:
    assert outcome(1e3) == outcome(1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: onnxdpp.prune(tokens(), rows(), keep=0.5, mask="masque"),
        lambda: onnxdpp.evaluate(tokens(), tokens(), rows(), mask="masque"),
        lambda: onnxdpp.compare_methods(tokens(), rows(), mask="masque"),
        lambda: onnxdpp.inspect(tokens(), mask="masque"),
    ],
    ids=["prune", "evaluate", "compare", "inspect"],
)
def test_mask_that_is_no_input_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(UsageError, match=r"The mask 'masque' is no input of the model. Its inputs: 'x', 'mask'"):
        call()
