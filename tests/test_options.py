"""What may be asked of `prune`, and how many stay."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoking import data, mlp

import onnxdpp
from onnxdpp.errors import UsageError
from onnxdpp.options import Options, count_to_keep, parse_layer
from onnxdpp.report import to_json

KEEP = st.floats(0, 1, exclude_min=True)
WIDTH = st.integers(1, 10_000)


@pytest.mark.parametrize("keep", [0.0, -0.0, -1.0, 1.0000001, 1.2, math.nan, math.inf, -math.inf])
def test_keep_outside_of_its_range(keep: float) -> None:
    with pytest.raises(UsageError, match=r"^keep is .*; it must be above 0 and at most 1: the fraction that stays\.$"):
        Options(keep)
    with pytest.raises(UsageError, match=r"^keep is "):
        parse_layer(f"fc={keep}")


@pytest.mark.parametrize("keep", [5e-324, 1e-9, 0.5, 1.0])
def test_keep_inside_of_its_range(keep: float) -> None:
    assert Options(keep).keep == keep


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("unit", "Neuron", "unit is 'Neuron'; it can be neuron, edge."),
        (
            "method",
            "map",
            "method is 'map'; it can be auto, dpp, dpp-sample, obs, omp, wanda, fluctuation, importance, random.",
        ),
        ("kernel", "", "kernel is ''; it can be rbf, linear, consumer."),
        ("refit", "ridge", "refit is 'ridge'; it can be affine, linear, none."),
        ("provider", "gpu", "provider is 'gpu'; it can be auto, cpu, cuda."),
        ("beta", 0.0, "beta is 0.0; it must be a positive number."),
        ("beta", -1.0, "beta is -1.0; it must be a positive number."),
        ("beta", math.inf, "beta is inf; it must be a positive number."),
        ("beta", math.nan, "beta is nan; it must be a positive number."),
        ("epsilon", 0.0, "epsilon is 0.0; it must be a positive number."),
        ("epsilon", math.nan, "epsilon is nan; it must be a positive number."),
        ("round_to", 0, "round_to is 0; it must be at least 1."),
        ("batch_size", 0, "batch_size is 0; it must be at least 1."),
        ("max_rows", -3, "max_rows is -3; it must be at least 1."),
        ("seed", -1, "seed is -1; it must be at least 0 and below 2^64."),
        ("seed", 2**64, "seed is 18446744073709551616; it must be at least 0 and below 2^64."),
    ],
)
def test_option_that_cannot_be(name: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Options(0.5, **{name: value})  # type: ignore[arg-type]
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "pattern", "keep"),
    [
        ("fc1", "fc1", None),
        ("fc1=0.5", "fc1", 0.5),
        ("a=b=0.5", "a=b", 0.5),
        ("fc*=1", "fc*", 1.0),
        ("=0.5", "", 0.5),
        ("/model/fc.0/Gemm=1e-1", "/model/fc.0/Gemm", 0.1),
        ("層=.5", "層", 0.5),
    ],
)
def test_layer_pattern(text: str, pattern: str, keep: float | None) -> None:
    assert parse_layer(text) == (pattern, keep)


@pytest.mark.parametrize("text", ["fc1=", "fc1=half", "fc1=50%", "a=b"])
def test_layer_pattern_whose_keep_is_no_number(text: str) -> None:
    with pytest.raises(UsageError, match=r"not a number\. Write PATTERN=KEEP; for a name that holds '=', write "):
        parse_layer(text)


@given(KEEP, WIDTH)
def test_count_is_the_fraction_rounded_half_up(keep: float, n: int) -> None:
    k = count_to_keep(keep, n)
    assert 1 <= k <= n
    assert k == 1 or abs(k - keep * n) <= 0.5 + 1e-9 * n
    assert count_to_keep(1.0, n) == n


@given(KEEP, WIDTH, st.integers(1, 64))
def test_count_rounded_is_a_multiple_or_everything(keep: float, n: int, round_to: int) -> None:
    k = count_to_keep(keep, n, round_to)
    assert 1 <= k <= n
    assert k % round_to == 0 or k == n
    assert abs(k - count_to_keep(keep, n)) <= max(round_to / 2, round_to - 1)


@given(st.tuples(KEEP, KEEP), WIDTH, st.integers(1, 64))
def test_count_grows_with_the_fraction(keeps: tuple[float, float], n: int, round_to: int) -> None:
    low, high = sorted(keeps)
    assert count_to_keep(low, n, round_to) <= count_to_keep(high, n, round_to)


def test_count_rounds_to_the_nearest_multiple_upwards_at_half() -> None:
    assert [count_to_keep(k / 100, 100, 8) for k in (1, 4, 11, 12, 13, 20, 99, 100)] == [8, 8, 8, 16, 16, 24, 96, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.5, "pattern": "2:4", "unit": "edge"}, "Give one of these: keep; target-parameters"),
        ({}, "Give one of these: keep; target-parameters"),
        ({"pattern": "2:4"}, "for edges"),
        ({"pattern": "2:4", "unit": "edge", "method": "dpp-sample"}, "dpp-sample"),
        ({"pattern": "2:4", "unit": "edge", "round_to": 8}, "round-to"),
        ({"pattern": "2:4", "unit": "edge", "layers": ["fc1=0.5"]}, "layer's keep"),
        ({"pattern": "4:2", "unit": "edge"}, "'4:2' is not N:M"),
        ({"pattern": "0:4", "unit": "edge"}, "'0:4' is not N:M"),
        ({"pattern": "2", "unit": "edge"}, "'2' is not N:M"),
    ],
)
def test_pattern_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        onnxdpp.prune("missing.onnx", "missing.npz", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "0.5"}, "keep is '0.5'; it must be a number."),
        ({"keep": 0.5, "seed": 1.5}, "seed is 1.5; it must be a whole number."),
        ({"keep": 0.5, "max_rows": 10.5}, "max_rows is 10.5; it must be a whole number."),
        ({"keep": 0.5, "round_to": 2.5}, "round_to is 2.5; it must be a whole number."),
        ({"keep": 0.5, "epsilon": 1e-310}, "epsilon is 1e-310; it must be a positive number."),
    ],
)
def test_option_of_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        onnxdpp.prune("missing.onnx", "missing.npz", **options)


def test_model_of_another_type_is_refused() -> None:
    with pytest.raises(UsageError, match="The model is a bytes"):
        onnxdpp.prune(b"model", "missing.npz", keep=0.5)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_taken_and_told_as_plain_ones() -> None:
    feeds = {"x": data()}
    report = onnxdpp.prune(
        mlp(), feeds, keep=np.float32(0.5), seed=np.int64(3), swaps=np.int8(2), beta=np.float32(1.5),
        max_rows=np.uint16(40), max_discrepancy=np.float32(0.75), provider="cpu",
    ).report  # fmt: skip
    assert json.loads(to_json(report)) == report
    given = (report["seed"], report["options"]["keep"], report["options"]["max_rows"], report["gates"][0]["limit"])
    assert given == (3, 0.5, 40, 0.75)
    assert Options(target_bytes=np.int64(900)).target_bytes == 900
    few = {"max_rows": np.int64(20), "provider": "cpu"}
    found = onnxdpp.evaluate(mlp(), mlp(), feeds, seed=np.int64(1), latency=False, memory=False, **few)
    assert json.loads(to_json(found)) == found
    found = onnxdpp.compare_methods(
        mlp(), feeds, keeps=np.array([0.5]), methods=["dpp"], repeat=np.int64(1), epsilon=np.float64(0.02),
        layers=(name for name in ["fc1"]), **few,
    )  # fmt: skip
    assert json.loads(to_json(found)) == found
    assert found["options"]["layers"] == ["fc1"]


@pytest.mark.parametrize("method", ["dpp", "auto"])
def test_own_keep_of_a_layer_goes_before_the_size_of_its_dpp(method: str) -> None:
    def kept(*layers: str, **options: Any) -> list[int]:
        given = {"keep": "auto", "method": method, "provider": "cpu", "layers": layers, **options}
        return [layer["kept"] for layer in onnxdpp.prune(mlp(), {"x": data()}, **given).report["layers"]]

    assert kept()[0] < 16
    assert kept("fc1=1.0", "fc2")[0] == 16
    assert kept("fc1=0.5", "fc2")[0] == 8
    assert kept("fc1=1.0", "fc2", sweeps=1)[0] == 16
