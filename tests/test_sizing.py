"""`inspect --calib`: how many neurons of each layer its own DPP would keep."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from invoking import DIGITS, Outcome, data, invoke, mlp, refusal, stored
from models import constant, model, normal, two_heads
from onnx import ModelProto

import onnxdpp
from onnxdpp import sizing
from onnxdpp.errors import DataError
from onnxdpp.report import schema

Run = Callable[..., Outcome]

X = {"x": data()}


@pytest.fixture
def inspect(capfd: pytest.CaptureFixture[str]) -> Run:
    """`onnxdpp inspect --provider cpu` and what else is given."""
    return lambda *more: invoke(capfd, "inspect", "--provider", "cpu", *more)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """The network 8-16-12-3 (layers fc1, fc2)."""
    return stored(mlp(), tmp_path / "net.onnx")


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    """64 rows for the network."""
    np.savez(tmp_path / "calib.npz", **X)
    return tmp_path / "calib.npz"


def residual() -> ModelProto:
    """c1 (6), written by c1 and c2, read by c2, c3 (by patches) and fc (flattened); c3 (4)."""
    return model(
        """g (float[N, 2, 6, 6] x) => (float[N, 5, 4, 4] y, float[N, 3] z) {
            [c1] a = Conv(x, w1)   p = Relu(a)
            [c2] b = Conv(p, w2)   s = Add(a, b)   q = Relu(s)
            [c3] c = Conv(q, w3)   r = Relu(c)
            [c4] y = Conv(r, w4)
            f = Flatten(q)
            [fc] z = Gemm(f, w5)
        }""",
        w1=(6, 2, 1, 1), w2=(6, 6, 1, 1), w3=(4, 6, 3, 3), w4=(5, 4, 1, 1), w5=(6 * 36, 3),
    )  # fmt: skip


def sizes(found: dict[str, Any], unit: str = "neuron") -> dict[str, float | None]:
    return {layer["name"]: layer["expected_size"] for layer in found["layers"] if layer["unit"] == unit}


# What it is


@pytest.mark.parametrize(
    "options", [{}, {"kernel": "linear"}, {"beta": 10.0}, {"epsilon": 0.1, "kernel": "consumer"}, {"max_rows": 100}]
)
def test_size_rounded_is_what_prune_keeps_of_a_layer_alone(options: dict[str, Any]) -> None:
    path, calib = DIGITS / "model.onnx", DIGITS / "calib.npz"
    found = sizes(onnxdpp.inspect(path, calib=calib, provider="cpu", **options))
    for name, size in found.items():
        pruned = onnxdpp.prune(path, calib, keep="auto", method="dpp", layers=name, provider="cpu", **options)
        assert size is not None
        assert [round(size)] == [layer["kept"] for layer in pruned.report["layers"]]
    assert list(found) == ["fc1", "fc2"]


def test_size_of_the_first_layer_is_what_prune_keeps_of_all() -> None:
    found = sizes(onnxdpp.inspect(DIGITS / "model.onnx", calib=DIGITS / "calib.npz", provider="cpu"))
    result = onnxdpp.prune(DIGITS / "model.onnx", DIGITS / "calib.npz", keep="auto", method="dpp", provider="cpu")
    assert result.report["layers"][0]["kept"] == round(found["fc1"] or 0)


def test_size_of_channels_read_in_several_ways() -> None:
    calib = {"x": data(32, 2, 6, 6)}
    found = sizes(onnxdpp.inspect(residual(), calib=calib, provider="cpu"))
    assert list(found) == ["c1", "c3"]
    for name, size in found.items():
        pruned = onnxdpp.prune(residual(), calib, keep="auto", method="dpp", layers=name, provider="cpu")
        assert size is not None
        assert [round(size)] == [layer["kept"] for layer in pruned.report["layers"]]


def test_size_of_neurons_read_in_two_ways_is_that_of_the_mean_of_both() -> None:
    """Of their values behind a Relu and behind a Tanh."""
    proto, x = two_heads(), normal(50, 4)
    a = (x @ constant(proto, "W1") + constant(proto, "b1")).astype(np.float64)
    gram = np.mean([h.T @ h / len(h) for h in (np.maximum(a, 0), np.tanh(a))], axis=0)
    distances = np.add.outer(gram.diagonal(), gram.diagonal()) - 2 * gram
    values = np.linalg.eigvalsh(np.exp(-distances)) + 0.01
    found = onnxdpp.inspect(proto, calib={"x": x}, beta=1.0, provider="cpu")
    assert sizes(found)["fc1"] == pytest.approx((values / (1 + values)).sum(), rel=1e-6)  # the model runs in float32


def test_neurons_that_are_all_the_same_count_as_one() -> None:
    """Of the kernel 11' + epsilon I: one eigenvalue 16 + epsilon, the others epsilon."""
    proto = mlp(w1=np.tile(normal(8, 1), (1, 16)), b1=np.zeros(16, np.float32))
    expected = 16.001 / 17.001 + 15 * 0.001 / 1.001
    found = onnxdpp.inspect(proto, calib=X, epsilon=0.001, provider="cpu")
    assert sizes(found)["fc1"] == pytest.approx(expected, rel=1e-9)


def test_size_hangs_on_no_batches() -> None:
    rows = [{"x": part} for part in np.split(X["x"], [5, 6, 40])]
    whole, parts = (sizes(onnxdpp.inspect(mlp(), calib=calib, provider="cpu")) for calib in (X, rows))
    assert parts == pytest.approx(whole, rel=1e-9)


def test_progress_is_that_of_each_layer() -> None:
    told: list[tuple[str, float]] = []
    onnxdpp.inspect(mlp(), calib=X, provider="cpu", progress=lambda text, fraction: told.append((text, fraction)))
    assert told == [("fc1", 1.0), ("fc2", 1.0)]


# How it is shown


def test_sizes_in_the_table(inspect: Run, net: Path, calib: Path) -> None:
    outcome = inspect(net, "--calib", calib)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^layer \(--unit neuron\) +neurons +consumer outputs +DPP's own size$", outcome.out, re.MULTILINE)
    for name, size in sizes(onnxdpp.inspect(mlp(), calib=X, provider="cpu")).items():
        assert re.search(rf"^{name} +\d+ +\d+ +{size:.1f}$", outcome.out, re.MULTILINE)
    assert re.search(r"^layer \(--unit edge\) +inputs +outputs$", outcome.out, re.MULTILINE)


def test_sizes_in_json(inspect: Run, net: Path, calib: Path) -> None:
    outcome = inspect(net, "--calib", calib, "--json", "--max-rows", 20, "--beta", 2, "--epsilon", 0.1)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    jsonschema.validate(found, schema("inspection"))
    options: dict[str, Any] = {"max_rows": 20, "beta": 2.0, "epsilon": 0.1}
    assert sizes(found) == sizes(onnxdpp.inspect(mlp(), calib=X, provider="cpu", **options))
    assert sizes(found, "edge") == {"fc1": None, "fc2": None, "fc3": None}


def test_sizes_beside_verdicts(inspect: Run, net: Path, calib: Path) -> None:
    outcome = inspect(net, "--verify", "--calib", calib)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^fc1 +16 +12 +\d+\.\d +\S+ +\S+ +sound$", outcome.out, re.MULTILINE)


@pytest.mark.parametrize("flags", [[], ["--verify"]])
def test_no_sizes_without_data(inspect: Run, net: Path, flags: list[str]) -> None:
    assert "own size" not in inspect(net, *flags).out
    outcome = inspect(net, "--json", *flags)
    assert outcome.err == ""
    found = json.loads(outcome.out)
    assert set(sizes(found).values()) == {None}
    assert found["notices"] == []


def test_sizes_on_random_rows_are_said_to_be(inspect: Run, net: Path) -> None:
    outcome = inspect(net, "--calib", "random:50")
    assert (outcome.code, outcome.err) == (
        0,
        "note: The calibration data are random: on others the DPP's own sizes differ.\n",
    )


# What fails


def test_layer_that_overflows_has_no_size_and_the_others_have(inspect: Run, calib: Path, tmp_path: Path) -> None:
    """exp(100) is infinite in float32, and the tanh of that is 1."""
    proto = mlp(
        """mlp (float[N, 8] x) => (float[N, 3] y) {
            [fc1] a = Gemm(x, w1, b1)
            p = Exp(a)
            [fc2] c = Gemm(p, w2, b2)
            q = Tanh(c)
            [fc3] y = Gemm(q, w3, b3)
        }""",
        b1=np.full(16, 100, np.float32),
        w2=np.ones((16, 12), np.float32),
    )
    outcome = inspect(stored(proto, tmp_path / "net.onnx"), "--calib", calib, "--json")
    assert outcome.code == 0
    assert outcome.err.startswith("note: No expected size of 'fc1': The value 'p' is not finite")
    assert outcome.err.count("\n") == 1
    found = json.loads(outcome.out)
    jsonschema.validate(found, schema("inspection"))
    assert sizes(found)["fc1"] is None
    assert sizes(found)["fc2"] == pytest.approx(12.01 / 13.01 + 11 * 0.01 / 1.01, rel=1e-9)


def test_data_that_cannot_be_used_are_an_error() -> None:
    rows = X["x"].copy()
    rows[3, 2] = np.nan
    with pytest.raises(DataError, match=r"input 'x', row 3 .*, holds nan"):
        onnxdpp.inspect(mlp(), calib={"x": rows}, provider="cpu")


def test_layers_without_size_for_one_reason_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> float:
        raise np.linalg.LinAlgError("It has no eigenvalues.")

    monkeypatch.setattr(sizing, "expected_neurons", failing)
    found = onnxdpp.inspect(mlp(), calib=X, provider="cpu")
    assert sizes(found) == {"fc1": None, "fc2": None}
    assert found["notices"] == ["No expected size of 'fc1', 'fc2': It has no eigenvalues."]


def test_kernel_beyond_float64_is_no_size() -> None:
    """The squares of the consumer's weights overflow."""
    text = """g (double[N, 8] x) => (double[N, 3] y) { [fc1] a = Gemm(x, w1)   [fc2] y = Gemm(a, w2) }"""
    proto = model(text, w1=1e-160 * normal(8, 6).astype(float), w2=1e160 * normal(6, 3).astype(float))
    with np.errstate(over="ignore", invalid="ignore"):
        found = onnxdpp.inspect(proto, calib=X, kernel="consumer", provider="cpu")
    assert sizes(found) == {"fc1": None}
    assert any(notice.startswith("No expected size of 'fc1': ") for notice in found["notices"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--calib", ""], 2, "--calib is empty. Name the calibration data."),
        (["--calib", "none.npz"], 3, "none.npz does not exist."),
        (["--calib", "random:0"], 2, "random:0"),
        (["--calib", "random:8", "--kernel", "cosine"], 2, "kernel is 'cosine'; it can be rbf, linear, consumer."),
        (["--calib", "random:8", "--beta", "0"], 2, "beta is 0.0; it must be a positive number."),
        (["--calib", "random:8", "--beta", "wide"], 2, "'wide' is neither 'auto' nor a number."),
        (["--calib", "random:8", "--epsilon", "-1"], 2, "epsilon is -1.0; it must be a positive number."),
        (["--calib", "random:8", "--max-rows", "0"], 2, "max_rows is 0; it must be at least 1."),
        (["--verify", "--provider", "gpu"], 2, "provider is 'gpu'; it can be auto, cpu, cuda."),
    ],
)
def test_mistake_is_one_line(inspect: Run, net: Path, arguments: list[str], code: int, message: str) -> None:
    assert message in refusal(inspect(net, *arguments), code)
