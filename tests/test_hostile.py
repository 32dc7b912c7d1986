"""Hostile and unlucky inputs through the command line: exit code, one line, nothing written, nothing left behind.

The numbers are those of the list of bad inputs, FACTS.md F. What a refusal says in detail is tested where it is
raised (test_checking.py, test_model.py, test_batches.py); here, that it arrives.
"""

import contextlib
import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from invoking import Outcome, answers, contents, data, execute, invoke, mlp, refusal, spawn, stored, untouched
from models import UNKNOWN, Array, constant, decorated, model
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxdpp import __main__ as entry
from onnxdpp.graph import calibration

Run = Callable[..., Outcome]
Change = Callable[[ModelProto], object]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, signals, users and paths of POSIX")


@pytest.fixture
def onnxdpp(capfd: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: invoke(capfd, *arguments)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """The network 8-16-12-3 (layers fc1, fc2)."""
    return stored(mlp(), tmp_path / "net.onnx")


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    np.savez(tmp_path / "calib.npz", x=data())
    return tmp_path / "calib.npz"


@pytest.fixture
def prune(onnxdpp: Run, net: Path, calib: Path) -> Run:
    """`onnxdpp prune NET --calib DATA --keep 0.5 --provider cpu`; what else is given comes last and so counts."""
    return lambda *more: onnxdpp("prune", net, "--calib", calib, "--keep", 0.5, "--provider", "cpu", *more)


@pytest.fixture
def pruned(onnxdpp: Run, tmp_path: Path) -> Callable[..., tuple[ModelProto, dict[str, Any], Outcome]]:
    """Prune a model that can be, with random data where none are given: the new model, its report, what was said."""

    def run(
        proto: ModelProto, *more: object, keep: float = 0.5, **arrays: Array
    ) -> tuple[ModelProto, dict[str, Any], Outcome]:
        path = stored(proto, tmp_path / "given.onnx")
        out = tmp_path / "pruned.onnx"
        source: object = "random:40"
        if arrays:
            source = tmp_path / "given.npz"
            np.savez(source, **arrays)
        outcome = onnxdpp(
            "prune", path, "--calib", source, "--keep", keep, "--provider", "cpu", "-o", out, "--force", "--json", *more
        )
        assert outcome.code == 0, outcome.err
        assert all(line.startswith("note: ") for line in outcome.err.splitlines())
        return onnx.load(out), json.loads(outcome.out), outcome

    return run


# 1-7: what is no model


def archive(**members: bytes) -> bytes:
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        file.seek(0)
        return file.read()


SOUND = mlp().SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"just a text\n" * 9, "is a plain text"),
        (b"<!DOCTYPE html><title>404</title>" * 9, "is an HTML page, perhaps the error page of a download"),
        (b"%PDF-1.7\n\xe2\xe3\xcf\xd3\n" + bytes(99), "is a PDF document"),
        (
            archive(**{"m/data.pkl": b"\x80\x02}q\x00.", "m/data/0": bytes(16)}),
            "is a zip archive, perhaps a PyTorch .pt",
        ),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a Python pickle, perhaps a PyTorch file"),
        (b"\x1c\x00\x00\x00ORTM" + bytes(64), "is a model in ORT format"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "is a Git LFS pointer, not the model. Run git lfs pull",
        ),
        (gzip.compress(SOUND), "is a gzip archive. Unpack it"),
        (archive(**{"net.onnx": SOUND}), "is a zip archive"),
        (SOUND[:-1], "cut short"),
        (SOUND[: len(SOUND) // 2], "cut short"),
        (SOUND + b"\xff\xff\xff\xff", "followed by other bytes"),
        (SOUND + SOUND, "holds 2 models, one after the other"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "prune"])
def test_file_that_is_no_model(
    onnxdpp: Run, prune: Run, net: Path, tmp_path: Path, command: str, content: bytes, message: str
) -> None:
    net.write_bytes(content)
    with untouched(tmp_path):
        line = refusal(onnxdpp("inspect", net) if command == "inspect" else prune(), 3)
    assert line.startswith("onnxdpp: Model file ")
    assert message in line


@pytest.mark.parametrize("command", ["inspect", "prune"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.onnx", "does not exist"),
        ("no/folder/none.onnx", "does not exist"),
        (".", "is a folder"),
        ("/", "is a folder"),
        ("", "is a folder"),
        ("net.onnx/below", "cannot be read: Not a directory"),
        ("fifo", "is not a regular file"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_model_path_without_a_file(
    onnxdpp: Run, net: Path, calib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    rest = [] if command == "inspect" else ["--calib", calib, "--keep", 0.5]
    assert message in refusal(onnxdpp(command, name, *rest), 3)


@contextlib.contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder of root's; the process is not root's while it lasts."""
    if os.geteuid() != 0:
        pytest.skip("root alone can become somebody else")
    os.seteuid(65534)
    readable = os.access(np.__file__, os.R_OK, effective_ids=True)
    os.seteuid(0)
    if not readable:
        pytest.skip("nobody else can read the installed packages")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        stored(mlp(), folder / "net.onnx")
        np.savez(folder / "calib.npz", x=data())
        (folder / "net.onnx").chmod(0o644)
        (folder / "calib.npz").chmod(0o644)
        yield folder


def test_model_file_of_another_user(onnxdpp: Run) -> None:
    with as_nobody() as folder:
        (folder / "net.onnx").chmod(0o600)
        os.seteuid(65534)
        try:
            outcome = onnxdpp("inspect", folder / "net.onnx")
        finally:
            os.seteuid(0)
        assert "cannot be read: Permission denied." in refusal(outcome, 3)


# 12-18: models that cannot be


def tensor(proto: ModelProto, name: str = "w1") -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: tensor(m).__setattr__("raw_data", tensor(m).raw_data[:-1]), "needs 512 bytes and has 511"),
        (lambda m: tensor(m).__setattr__("raw_data", tensor(m).raw_data + b"1234"), "needs 512 bytes and has 516"),
        (lambda m: tensor(m).dims.__setitem__(0, -8), "impossible shape -8x16"),
        (lambda m: tensor(m).dims.__setitem__(0, 2**40), "needs 70368744177664 bytes"),
        (lambda m: tensor(m).dims.extend([2**40, 2**40]), "impossible shape"),
        (lambda m: tensor(m).__setattr__("data_type", 0), "unknown element type 0"),
        (lambda m: tensor(m).__setattr__("data_type", 77), "unknown element type 77"),
        (lambda m: tensor(m).float_data.append(1.0), "holds its data more than once"),
        (lambda m: tensor(m).ClearField("raw_data"), "has 0"),
        (lambda m: m.graph.initializer.append(tensor(m)), "'w1' is declared 2 times"),
        (lambda m: m.graph.output.append(m.graph.output[0]), "'y' is declared 2 times"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "a"), "Value 'a' is written more than once"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "q"), "along a cycle"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"), "reads 'nowhere', which nothing writes"),
        (lambda m: m.graph.output[0].__setattr__("name", "z"), "Graph output 'z' is written by no node"),
        (lambda m: m.graph.node[1].__setattr__("op_type", "Rlu"), "onnx.checker refuses it"),
        (lambda m: m.ClearField("graph"), "without a graph"),
        (lambda m: m.ClearField("opset_import"), "imports no operator set"),
        (lambda m: m.opset_import[0].__setattr__("version", 99), "operator set 99"),
        (lambda m: m.__setattr__("ir_version", 99), "IR version is 99"),
    ],
)
def test_model_that_cannot_be(prune: Run, net: Path, tmp_path: Path, change: Change, message: str) -> None:
    proto = mlp()
    change(proto)
    stored(proto, net)
    with untouched(tmp_path):
        line = refusal(prune(), 3)
    assert message in line
    assert str(net) in line


def test_model_of_unsorted_nodes_is_pruned_and_sorted(pruned: Callable[..., Any]) -> None:
    sorted_, unsorted = mlp(), mlp()
    nodes = list(reversed(unsorted.graph.node))
    del unsorted.graph.node[:]
    unsorted.graph.node.extend(nodes)
    a, b = pruned(sorted_)[0], pruned(unsorted)[0]
    assert a.graph.node == b.graph.node
    assert sorted(t.SerializeToString() for t in a.graph.initializer) == sorted(
        t.SerializeToString() for t in b.graph.initializer
    )


# 25, 30, 33, 36: layers that are left alone, each with its reason


def beside(first: str, z: tuple[Any, ...] = ("N", 8), **weights: Any) -> ModelProto:
    """`first` from value x to value a, and a network behind it; beside them, one whose fc3 can be pruned."""
    proto = model(
        f"""g (float[N, 8] x) => (float[N, 8] y) {{
            {first}
            p = Relu(a)
            [fc2] z = MatMul(p, w2)
            [fc3] c = Gemm(x, w3, b)
            q = Tanh(c)
            [fc4] y = Gemm(q, w4, b)
        }}""",
        **{**dict.fromkeys(("w1", "w2", "w3", "w4"), (8, 8)), "b": (8,), **weights},
    )
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, z))
    return proto


def also_input() -> ModelProto:
    proto = beside("[fc1] a = Gemm(x, w1, b)")
    proto.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [8, 8]))
    return proto


def also_output(name: str) -> ModelProto:
    proto = beside("[fc1] a = Gemm(x, w1, b)")
    shape = [8, 8] if name == "w1" else ["N", 8]
    proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return proto


def transposed() -> ModelProto:
    """A batch of exactly 8 rows, which the first layer takes for features."""
    proto = beside("[fc1] a = Gemm <transA = 1> (x, w1, b)")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    return proto


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (beside("[fc1] a = Gemm(x, w2, b)"), "its weight 'w2' is shared with MatMul 'fc2'"),
        (also_input(), "its weight is not constant: 'w1' is also a graph input, so that callers may override it"),
        (also_output("w1"), "its weight 'w1' is shared with the graph's outputs"),
        (also_output("p"), "its value 'p' is a graph output"),
        (beside("[fc1] a0 = Gemm(x, w1, b) a = Softmax(a0)"), "Softmax 'a' mixes neurons"),
        (
            beside("[fc1] a = MatMul(x, w1)", (1, "N", 8), w1=np.ones((1, 8, 8), np.float32)),
            "its weight 'w1' is float32 (1, 8, 8), not a matrix",
        ),
        (
            beside("[fc1] a0 = MatMul(x, w1) a = MatMul(a0, w0)", w1=np.zeros((8, 0), np.float32), w0=(0, 8)),
            "its weight 'w1' is empty: (8, 0)",
        ),
        (transposed(), "its input is transposed (transA)"),
        (
            beside("noise = RandomNormalLike(x) xx = Add(x, noise) [fc1] a = Gemm(xx, w1, b)"),
            "its input 'xx' depends on a random operator",
        ),
        (
            beside(
                "[fc1] a0 = Gemm(x, w1, b) a = Dropout(a0, ratio, train)",
                ratio=np.array(0.5, np.float32), train=np.array(True),
            ),
            "Dropout 'a' may drop at random (training mode)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_layer_left_alone_with_its_reason(pruned: Callable[..., Any], proto: ModelProto, reason: str) -> None:
    _, report, _ = pruned(proto)
    (told,) = (refused["reason"] for refused in report["refusals"] if refused["name"] == "fc1")
    assert reason in told
    assert [layer["name"] for layer in report["layers"]] == ["fc3"]


def test_tied_embeddings_are_left_alone(pruned: Callable[..., Any]) -> None:
    """One matrix embeds tokens and scores them, transposed."""
    proto = model(
        """g (int64[N] token) => (float[N, 20] y) {
            e = Gather(E, token)
            [fc1] a = Gemm(e, w1)
            p = Relu(a)
            [fc2] c = Gemm(p, w2)
            [score] y = Gemm <transB = 1> (c, E)
        }""",
        E=(20, 8), w1=(8, 12), w2=(12, 8),
    )  # fmt: skip
    after, report, _ = pruned(proto, token=np.arange(20))
    assert tensor(after, "E") == tensor(proto, "E")
    (reason,) = (refused["reason"] for refused in report["refusals"] if refused["name"] == "score")
    assert reason == "its weight 'E' is shared with Gather 'e'"


def test_random_output_is_not_compared_and_said_so(pruned: Callable[..., Any]) -> None:
    proto = mlp(
        """g (float[N, 8] x) => (float[N, 3] y, float[N, 3] z) {
            [fc1] a = Gemm(x, w1, b1)
            p = Relu(a)
            [fc2] y = Gemm(p, w2, b2)
            noise = RandomNormalLike(y)
            z = Add(y, noise)
        }""",
        w2=(16, 3), b2=(3,),
    )  # fmt: skip
    _, report, outcome = pruned(proto, x=data())
    assert list(report["discrepancy"]) == ["y"]
    assert outcome.err == "note: Output 'z' depends on a random operator and is not compared.\n"


@pytest.mark.parametrize("kind", ["scalar", "empty", "grouped", "depthwise", "pointwise"])
def test_unusual_constants_stay_and_convolutions_are_pruned(pruned: Callable[..., Any], kind: str) -> None:
    first = {
        "scalar": "xx = Mul(x, c)",
        "empty": "xx = Concat <axis = 1> (x, c)",
        "grouped": "i = Reshape(x, s) o = Conv <group = 2> (i, c) xx = Flatten(o)",
        "depthwise": "i = Reshape(x, s) o = Conv <group = 8> (i, c) xx = Flatten(o)",
        "pointwise": "i = Reshape(x, s) o = Conv(i, c) xx = Flatten(o)",
    }[kind]
    values: dict[str, Any] = {
        "scalar": np.float32(2),
        "empty": np.zeros((40, 0), np.float32),
        "grouped": (8, 4, 1, 1),
        "depthwise": (8, 1, 1, 1),
        "pointwise": (8, 8, 1, 1),
    }
    proto = mlp(
        f"""g (float[N, 8] x) => (float[N, 3] y) {{
            {first}
            [fc1] a = Gemm(xx, w1, b1)
            p = Relu(a)
            [fc2] y = Gemm(p, w2, b2)
        }}""",
        w2=(16, 3), b2=(3,), c=values[kind], s=np.array([-1, 8, 1, 1]),
    )  # fmt: skip
    if kind == "empty":  # its rows are as many as those of a batch
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 40
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 40
    after, report, _ = pruned(proto)
    pruned_too = kind in ("grouped", "pointwise")
    assert [layer["name"] for layer in report["layers"]] == ["c"] * pruned_too + ["fc1"]
    assert (tensor(after, "c") == tensor(proto, "c")) is not pruned_too
    left = {refused["name"]: refused["reason"] for refused in report["refusals"]}
    beside = "depthwise: its channels come and go with those of its input, which stay"
    assert left.get("c") == (beside if kind == "depthwise" else None)


def quantized() -> ModelProto:
    """fc1 and fc2 with weights that DequantizeLinear gives."""
    return model(
        """g (float[N, 8] x) => (float[N, 3] y) {
            w1 = DequantizeLinear(i1, s)
            [fc1] a = MatMul(x, w1)
            p = Relu(a)
            w2 = DequantizeLinear(i2, s)
            [fc2] y = MatMul(p, w2)
        }""",
        i1=np.ones((8, 16), np.int8), i2=np.ones((16, 3), np.int8), s=np.float32(0.1),
    )  # fmt: skip


def test_quantized_model_has_nothing_to_prune(onnxdpp: Run, tmp_path: Path) -> None:
    path = stored(quantized(), tmp_path / "net.onnx")
    with untouched(tmp_path):
        outcome = onnxdpp("prune", path, "--calib", "random:8", "--keep", 0.5, "--provider", "cpu")
    assert (outcome.code, outcome.out) == (4, "")
    first, *reasons = outcome.err.splitlines()
    assert first == "onnxdpp: Nothing can be pruned: none of 2 candidate layers may be cut."
    assert reasons == [
        f"  fc{i}: its weight is not constant: 'w{i}' comes out of DequantizeLinear: prune before you quantize"
        for i in (1, 2)
    ]


def in_type(kind: int) -> ModelProto:
    """The network in another float type."""
    proto = mlp()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = kind
    for initializer in proto.graph.initializer:
        array = numpy_helper.to_array(initializer).astype(helper.tensor_dtype_to_np_dtype(kind))
        initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
        assert initializer.data_type == kind
    return proto


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("unit", ["neuron", "edge"])
def test_model_of_another_float_type_works(pruned: Callable[..., Any], kind: int, unit: str) -> None:
    after, report, _ = pruned(in_type(kind), "--unit", unit)
    assert {t.data_type for t in after.graph.initializer} == {kind}
    assert report["discrepancy"]["y"]["relative_l2"] < 1


def test_bfloat16_is_refused_with_the_reason(onnxdpp: Run, tmp_path: Path) -> None:
    path = stored(in_type(TensorProto.BFLOAT16), tmp_path / "net.onnx")
    with untouched(tmp_path):
        outcome = onnxdpp("prune", path, "--calib", "random:8", "--keep", 0.5, "--provider", "cpu")
    assert outcome.code in (3, 4)
    assert "bfloat16" in outcome.err
    assert "Traceback" not in outcome.err


# 27-29: weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_not_finite_are_refused_by_name_and_count(prune: Run, net: Path, tmp_path: Path, value: float) -> None:
    proto = mlp()
    w2 = constant(proto, "w2").copy()
    w2[3, :2] = value
    tensor(proto, "w2").CopyFrom(numpy_helper.from_array(w2, "w2"))
    stored(proto, net)
    with untouched(tmp_path):
        message = refusal(prune(), 3)
    if np.isnan(value):
        assert "Initializer 'w2' holds 2 NaN among 192 entries" in message
    else:
        assert "The weight 'w2' of Gemm 'fc2' holds 2 non-finite entries" in message


@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("add", [True, False])
def test_outputs_masked_by_minus_infinity_stay_so(
    pruned: Callable[..., Any], tmp_path: Path, unit: str, add: bool
) -> None:
    last = "z = MatMul(p, w2) y = Add(z, mask)" if add else "y = Gemm(p, w2, mask)"
    text = f"g (float[N, 8] x) => (float[N, 3] y) {{ a = Gemm(x, w1, b1) p = Relu(a) {last} }}"
    pruned(mlp(text, w2=(16, 3), mask=np.array([0, -np.inf, 0], np.float32)), "--unit", unit, x=data())
    (y,) = answers(tmp_path / "pruned.onnx", x=data(9))
    assert (np.isfinite(y) == [True, False, True]).all()


@pytest.mark.parametrize("unit", ["neuron", "edge"])
def test_bias_of_another_length_is_refused(prune: Run, net: Path, tmp_path: Path, unit: str) -> None:
    """onnx.checker lets it pass, and onnxruntime until it runs."""
    proto = mlp()
    proto.graph.node[2].input[2] = "b3"
    stored(proto, net)
    with untouched(tmp_path):
        assert "onnxruntime fails on rows 0 to 63 of the data: " in refusal(prune("--unit", unit), 3)


METHODS = ["dpp", "dpp-sample", "importance", "random"]


def replaced(name: str, entries: Any, value: float) -> ModelProto:
    proto = mlp()
    array = constant(proto, name).copy()
    array[entries] = value
    tensor(proto, name).CopyFrom(numpy_helper.from_array(array, name))
    return proto


def dead() -> ModelProto:
    """A quarter of fc1 never fires."""
    proto = replaced("w1", (slice(None), slice(4)), 0.0)
    b1 = constant(proto, "b1").copy()
    b1[:4] = -1.0
    tensor(proto, "b1").CopyFrom(numpy_helper.from_array(b1, "b1"))
    return proto


def doubled() -> ModelProto:
    """Every second neuron of fc1 is its neighbour's twin."""
    proto = mlp()
    w1, b1 = constant(proto, "w1").copy(), constant(proto, "b1").copy()
    w1[:, ::2], b1[::2] = w1[:, 1::2], b1[1::2]
    tensor(proto, "w1").CopyFrom(numpy_helper.from_array(w1, "w1"))
    tensor(proto, "b1").CopyFrom(numpy_helper.from_array(b1, "b1"))
    return proto


UNLUCKY = {
    "denormal": replaced("w2", ..., 1e-42),
    "one denormal": replaced("w2", (0, 0), 1e-42),
    "huge": replaced("w2", ..., 3e36),
    "zero layer": replaced("w1", ..., 0.0),
    "zero consumer": replaced("w3", ..., 0.0),
    "dead": dead(),
    "doubled": doubled(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("kind", list(UNLUCKY))
def test_unlucky_weights_work(pruned: Callable[..., Any], tmp_path: Path, kind: str, unit: str, method: str) -> None:
    for kernel in ("rbf", "linear") if method.startswith("dpp") else ("rbf",):
        pruned(UNLUCKY[kind], "--unit", unit, "--method", method, "--kernel", kernel, x=data())
        assert np.isfinite(answers(tmp_path / "pruned.onnx", x=data(9))[0]).all()


def test_weight_that_cannot_hold_what_others_carried(prune: Run, net: Path, tmp_path: Path) -> None:
    """Twelve equal neurons, each with a weight of 1e38."""
    proto = mlp(
        w2=np.full((16, 12), 0.01, np.float32), b2=np.zeros(12, np.float32), w3=np.full((12, 3), 1e38, np.float32)
    )
    stored(proto, net)
    assert prune("--refit", "none", "-o", tmp_path / "a.onnx").code == 0
    with untouched(tmp_path):
        line = refusal(prune("--layer", "fc2=0.1"), 3)
    assert "The refitted weights of 'fc3' do not fit into float32." in line


def test_twins_cost_nothing(pruned: Callable[..., Any]) -> None:
    _, report, _ = pruned(doubled(), "--layer", "fc1", x=data(200))
    assert report["layers"][0]["loss"] < 1e-5


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("method", METHODS)
def test_narrow_layers_keep_at_least_one(pruned: Callable[..., Any], width: int, unit: str, method: str) -> None:
    proto = mlp(w1=(8, width), b1=(width,), w2=(width, 1), b2=(1,), w3=(1, 1), b3=(1,))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    _, report, _ = pruned(proto, "--unit", unit, "--method", method, keep=0.01)
    assert {layer["kept"] for layer in report["layers"]} == {1}


# 31, 32: nothing to do, or done before


def test_nothing_prunable_lists_every_reason(onnxdpp: Run, tmp_path: Path) -> None:
    proto = mlp("g (float[N, 8] x) => (float[N, 16] y) { [fc1] a = Gemm(x, w1, b1) y = Softmax(a) }")
    path = stored(proto, tmp_path / "net.onnx")
    with untouched(tmp_path):
        outcome = onnxdpp(
            "prune", path, "--calib", "random:8", "--keep", 0.5, "--json", "--report", tmp_path / "r.json"
        )
    assert outcome == Outcome(
        4,
        "",
        "onnxdpp: Nothing can be pruned: its one candidate layer may not be cut.\n  fc1: Softmax 'y' mixes neurons\n",
    )


def test_nothing_prunable_without_any_candidate(onnxdpp: Run, tmp_path: Path) -> None:
    path = stored(mlp("g (float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }"), tmp_path / "net.onnx")
    with untouched(tmp_path):
        line = refusal(onnxdpp("prune", path, "--calib", "random:8", "--keep", 0.5), 4)
    assert line.startswith("onnxdpp: Nothing can be pruned")


def test_pruned_model_pruned_again_to_everything_stays(pruned: Callable[..., Any]) -> None:
    once, _, _ = pruned(mlp(), x=data())
    again, _, _ = pruned(once, "--refit", "none", keep=1.0, x=data())
    assert again == once


def test_pruned_edges_pruned_again_alike_stay(pruned: Callable[..., Any]) -> None:
    once, first, _ = pruned(mlp(), "--unit", "edge", "--method", "importance", x=data())
    again, second, _ = pruned(once, "--unit", "edge", "--method", "importance", x=data())
    assert second["model"]["after"]["nonzero"] == first["model"]["after"]["nonzero"]
    assert second["discrepancy"]["y"]["relative_l2"] < 1e-4
    for name in ("w1", "w2", "w3"):
        assert ((constant(once, name) == 0) == (constant(again, name) == 0)).all()


# 34, 35: rare parts of models


def test_zipmap_output_works_and_is_not_compared(pruned: Callable[..., Any]) -> None:
    proto = mlp(
        """g (float[N, 8] x) => (int64[N] label, float[N, 3] scores) {
            [fc1] a = Gemm(x, w1, b1)
            p = Relu(a)
            [fc2] scores = Gemm(p, w2, b2)
            label = ArgMax <axis = 1, keepdims = 0> (scores)
        }""",
        w2=(16, 3), b2=(3,),
    )  # fmt: skip
    proto.opset_import.add(domain="ai.onnx.ml", version=3)
    zipmap = helper.make_node("ZipMap", ["scores"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    proto.graph.node.append(zipmap)
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    proto.graph.output.append(helper.make_value_info("map", kind))
    _, report, outcome = pruned(proto, x=data())
    assert list(report["discrepancy"]) == ["label", "scores"]
    assert "note: Output 'map' is a seq(map(int64,tensor(float))) and is not compared.\n" in outcome.err


@pytest.mark.parametrize("unit", ["neuron", "edge"])
def test_everything_that_pruning_does_not_name_stays(pruned: Callable[..., Any], tmp_path: Path, unit: str) -> None:
    proto = decorated()
    proto.metadata_props.add(key="author", value="again")
    after, _, _ = pruned(proto, "--unit", unit)
    raw = (tmp_path / "pruned.onnx").read_bytes()
    assert raw.count(UNKNOWN) == proto.SerializeToString().count(UNKNOWN)
    for part in (proto, after):
        for name in ("W1", "b1", "W2", "b2", "W3", "b3"):
            tensor(part, name).CopyFrom(TensorProto(name=name))
        del part.graph.value_info[:]
    assert after.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


# 42, 43: names


def test_nodes_without_names_are_told_apart(pruned: Callable[..., Any]) -> None:
    proto = mlp()
    for node in proto.graph.node:
        node.name = ""
    _, report, _ = pruned(proto)
    assert [layer["name"] for layer in report["layers"]] == ["w1", "w2"]
    proto.graph.node[0].name = "w2"
    _, report, _ = pruned(proto)
    assert [layer["name"] for layer in report["layers"]] == ["w2", "w2#2"]
    _, report, _ = pruned(proto, "--layer", "w2#2")
    assert [layer["name"] for layer in report["layers"]] == ["w2#2"]


def test_nodes_with_the_same_name_are_refused_as_by_onnxruntime(prune: Run, net: Path, tmp_path: Path) -> None:
    proto = mlp()
    for node in proto.graph.node:
        node.name = "same"
    stored(proto, net)
    with untouched(tmp_path):
        assert "onnxruntime cannot load the model: " in refusal(prune(), 3)


def test_names_that_pruning_would_give_are_taken_already(pruned: Callable[..., Any]) -> None:
    text = """
        g (float[N, 8] x) => (float[N, 3] y) {
            [fc1] p = MatMul(x, w1)
            w2_bias = Relu(p)
            [fc2] y_before_bias = MatMul(w2_bias, w2)
            [fc2_bias] w3_bias = Tanh(y_before_bias)
            [y] y = MatMul(w3_bias, w3)
        }"""
    proto = mlp(text)
    for name in ("onnxdpp/shape/0/0", "w2_bias_2", "w2_0"):
        proto.graph.initializer.append(numpy_helper.from_array(np.float32([1]), name))
    after, report, _ = pruned(proto, x=data())
    assert [layer["kept"] for layer in report["layers"]] == [8, 6]
    assert report["model"]["after"]["macs"] == 8 * 8 + 8 * 6 + 6 * 3
    assert {"onnxdpp/shape/0/0", "w2_bias_2", "w2_0"} <= {t.name for t in after.graph.initializer}


EVIL = "\x1b[2J\x1b]0;evil\x07\n::error::\u202e<script>|"


def test_names_that_a_terminal_would_obey_are_escaped(onnxdpp: Run, tmp_path: Path, calib: Path) -> None:
    proto = mlp()
    proto.producer_name = EVIL
    for node in proto.graph.node:
        node.name = node.name and f"{node.name}{EVIL}"
    path = stored(proto, tmp_path / "net.onnx")
    arguments = ["prune", path, "--calib", calib, "--keep", 0.5, "--provider", "cpu", "--dry-run"]
    for outcome in (
        onnxdpp("inspect", path),
        onnxdpp(*arguments),
        onnxdpp(*arguments, "--skip", "*"),
        onnxdpp(*arguments, "--layer", EVIL),
    ):
        for text in (outcome.out, outcome.err):
            assert all(character.isprintable() or character == "\n" for character in text)
        assert "fc1\\x1b[2J" in outcome.out + outcome.err


# 52-65: calibration data


def two_inputs() -> ModelProto:
    return mlp(
        """g (float[N, 8] x, float[N, 8] Other) => (float[N, 3] y) {
            xx = Add(x, Other)
            [fc1] a = Gemm(xx, w1, b1)
            p = Relu(a)
            [fc2] y = Gemm(p, w2, b2)
        }""",
        w2=(16, 3), b2=(3,),
    )  # fmt: skip


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def npy(folder: Path, header: str) -> Path:
    """A .npy file of a header and no values."""
    text = header.encode("latin1")
    return written(folder / "data.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def shaped(shape: str) -> Callable[[Path], Path]:
    return lambda folder: npy(folder, f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n")


def flipped(folder: Path) -> Path:
    path = npz(folder, x=data())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    return written(path, bytes(content))


def twice_named(folder: Path) -> Path:
    one = npz(folder, x=data())
    with zipfile.ZipFile(one) as source:
        member = source.read("x.npy")
    with zipfile.ZipFile(one, "w") as packed:
        packed.writestr("x.npy", member)
        with pytest.warns(UserWarning, match="Duplicate"):
            packed.writestr("x.npy", member)
    return one


def with_bad_value(value: float) -> Array:
    rows = data()
    rows[17, 3] = value
    return rows


BAD_DATA: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda f: f / "none.npz", "does not exist"),
    ("empty file", lambda f: written(f / "a.npz", b""), "is empty"),
    ("empty folder", lambda f: (f / "e").mkdir() or f / "e", "has no .npz or .npy files in it"),
    ("no arrays", lambda f: npz(f), "has no arrays in it"),
    ("truncated", lambda f: written(f / "a.npz", npz(f, x=data()).read_bytes()[:-30]), "cannot be read"),
    ("bad checksum", flipped, "Bad CRC-32"),
    ("text", lambda f: written(f / "a.csv", b"1,2,3\n"), "is neither an .npz nor a .npy file"),
    ("pickle", lambda f: npz(f, x=np.array([{}, []], object)), "holds Python objects, which are never unpickled"),
    ("lying header", shaped("(1099511627776, 8)"), "The file is damaged"),
    ("negative", shaped("(-1, 8)"), "The file is damaged"),
    ("overflow", shaped("(4611686018427387904, 8)"), "The file is damaged"),
    ("code", lambda f: npy(f, "__import__('os').abort()\n"), "has no valid .npy header"),
    ("names doubled", twice_named, "has two arrays named 'x'"),
    ("no member of numbers", lambda f: written(f / "a.npz", archive(**{"x.txt": b"1"})), "that is no .npy array"),
    ("two arrays", lambda f: npz(f, x=data(), z=data()), "has an array 'z', which is no input of the model"),
    ("other names", lambda f: npz(f, a=data(), b=data()), "has no array for input 'x'; it has 'a', 'b'"),
    ("other rank", lambda f: npz(f, x=data(5, 2, 4)), "wants shape (N, 8), the array has (5, 2, 4)"),
    ("one row", lambda f: npz(f, x=data(1)[0]), "Its first axis is missing"),
    ("other width", lambda f: npz(f, x=data(5, 9)), "wants shape (N, 8), the array has (5, 9)"),
    ("scalar", lambda f: npz(f, x=np.float32(1)), "the array has ()"),
    ("no rows", lambda f: npz(f, x=data(0)), "has no rows for input 'x'"),
    ("complex", lambda f: npz(f, x=data().astype(np.complex64)), "wants float32, the array is complex64"),
    ("strings", lambda f: npz(f, x=np.full((4, 8), "a")), "wants float32, the array is <U1"),
    ("dates", lambda f: npz(f, x=np.zeros((4, 8), "datetime64[s]")), "the array is datetime64[s]"),
    ("structured", lambda f: npz(f, x=np.zeros((4, 8), [("a", "f4")])), "wants float32"),
    ("nan", lambda f: npz(f, x=with_bad_value(np.nan)), "input 'x', row 17 (counted from 0), holds nan"),
    ("infinite", lambda f: npz(f, x=with_bad_value(np.inf)), "row 17 (counted from 0), holds inf"),
    ("too large", lambda f: npz(f, x=with_bad_value(1.0).astype(float) * 1e39), "too large for float32"),
    ("random:0", lambda f: "random:0", "is not random:N"),
    ("random:x", lambda f: "random:x", "is not random:N"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in BAD_DATA], ids=[case[0] for case in BAD_DATA])
def test_data_that_cannot_be_used(prune: Run, tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    source = make(tmp_path)
    with untouched(tmp_path):
        line = refusal(prune("--calib", source), 2 if str(source).startswith("random:") else 3)
    assert message in line


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": data()},
            "has no array for input 'Other'; it has 'x'. Expected: x float32 (N, 8); Other float32 (N, 8).",
        ),
        ({"x": data(), "other": data()}, "Did you mean 'other'?"),
        ({"x": data(), "Other": data(), "more": data()}, "has an array 'more', which is no input of the model"),
        ({"x": data(4), "Other": data(5)}, "has different numbers of rows: x 4, Other 5"),
        ({"arr_0": data(), "arr_1": data()}, "has no array for input 'x'"),
    ],
)
def test_data_for_two_inputs(prune: Run, net: Path, tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    stored(two_inputs(), net)
    source = npz(tmp_path, **arrays)
    with untouched(tmp_path):
        assert message in refusal(prune("--calib", source), 3)


def test_header_of_50_megabytes_is_refused(prune: Run, tmp_path: Path) -> None:
    start = b"\x93NUMPY\x02\x00" + (50 * 2**20).to_bytes(4, "little")
    source = written(tmp_path / "data.npy", start + b" " * (50 * 2**20))
    assert "has no valid .npy header" in refusal(prune("--calib", source), 3)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda x: x.astype(">f4"), None),
        (lambda x: np.asfortranarray(x), None),
        (lambda x: (x * 50).astype(np.int8), None),
        (lambda x: x.astype(np.float16), None),
        (lambda x: x > 0, None),
        (lambda x: x.astype(np.float64), "note: Input 'x': float64 data are rounded to float32."),
        (lambda x: (x * 1e9).astype(np.int64), "note: Input 'x': some integers are too large for float32"),
        (lambda x: np.repeat(x[:1], 64, axis=0), "note: Input 'x': all rows are equal."),
        (lambda x: np.zeros_like(x), "note: Input 'x': all rows are equal."),
        (lambda x: x[:5], "note: 5 observations are few for the refit of 2 layers"),
        (lambda x: x[:1], "note: 1 observations are few for the refit of 2 layers"),
    ],
)
def test_data_of_other_types_or_of_little_use_work(
    prune: Run, tmp_path: Path, change: Callable[[Array], Array], note: str | None
) -> None:
    outcome = prune("--calib", npz(tmp_path, arr_0=change(data())))
    assert outcome.code == 0
    assert outcome.err.startswith(note) if note else outcome.err == ""
    assert np.isfinite(answers(tmp_path / "net.pruned.onnx", x=data(9))[0]).all()


def test_token_out_of_the_vocabulary_names_the_rows(onnxdpp: Run, tmp_path: Path) -> None:
    proto = mlp(
        """g (int64[N] token) => (float[N, 3] y) {
            e = Gather(E, token)
            [fc1] a = Gemm(e, w1, b1)
            p = Relu(a)
            [fc2] y = Gemm(p, w2, b2)
        }""",
        E=(20, 8), w2=(16, 3), b2=(3,),
    )  # fmt: skip
    path, source = stored(proto, tmp_path / "net.onnx"), npz(tmp_path, token=np.arange(15, 25))
    with untouched(tmp_path):
        outcome = onnxdpp("prune", path, "--calib", source, "--keep", 0.5, "--provider", "cpu", "--batch-size", 4)
        assert "onnxruntime fails on rows 4 to 7 of the data: " in refusal(outcome, 3)


def fixed_batch(size: int) -> ModelProto:
    proto = mlp()
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return proto


def test_fixed_batch_leaves_out_what_does_not_fill_one(prune: Run, net: Path) -> None:
    stored(fixed_batch(10), net)
    outcome = prune()
    assert outcome.code == 0
    assert "note: 4 of 64 rows are left out: the model takes 10 at a time.\n" in outcome.err
    assert "(60 calibration rows" in outcome.out


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--batch-size", 5], 2, "The batch size is 5, but the model fixes it to 10."),
        (["--max-rows", 9], 3, "too few: the model takes 10 at a time"),
    ],
)
def test_fixed_batch_that_cannot_be_filled(
    prune: Run, net: Path, tmp_path: Path, more: list[object], code: int, message: str
) -> None:
    stored(fixed_batch(10), net)
    with untouched(tmp_path):
        assert message in refusal(prune(*more), code)


def test_folder_of_files_is_read_in_order_whatever_else_lies_there(prune: Run, tmp_path: Path, net: Path) -> None:
    rows, folder = data(), tmp_path / "folder"
    folder.mkdir()
    for number in range(0, 64, 8):
        np.save(folder / f"{number:02}.npy", rows[number : number + 8])
    (folder / "README.txt").write_text("about these files")
    outcome = prune("--calib", folder, "-o", tmp_path / "a.onnx")
    assert outcome.code == 0
    assert outcome.err == f"note: {folder}: 1 of 9 entries are not .npz or .npy, so not read: README.txt.\n"
    assert prune("-o", tmp_path / "b.onnx").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_folder_with_a_broken_file_names_it(prune: Run, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "a.npy", data())
    (folder / "b.npy").write_bytes(b"broken")
    with untouched(tmp_path):
        assert f"{folder / 'b.npy'} is no .npy file" in refusal(prune("--calib", folder), 3)


def test_data_not_finite_inside_of_the_model_names_value_and_rows(prune: Run, net: Path, tmp_path: Path) -> None:
    stored(mlp(), net)
    proto = mlp(
        """g (float[N, 8] x) => (float[N, 3] y) {
            [fc1] a = Gemm(x, w1, b1)
            p = Sqrt(a)
            [fc2] y = Gemm(p, w2, b2)
        }""",
        w2=(16, 3), b2=(3,),
    )  # fmt: skip
    stored(proto, net)
    with untouched(tmp_path):
        line = refusal(prune(), 3)
    assert "The value 'p' is not finite (NaN or infinity) for rows 0 to 63 of the data." in line


# 67-70: options


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *[("--keep", keep, "keep is ") for keep in ("0", "-0.0", "1.2", "-1", "nan", "inf", "-inf", "1e-999", "70")],
        *[("--keep", keep, "is neither 'auto' nor a number") for keep in ("70%", "0.7.1", "", "half", "0,7")],
        ("--layer", "fc1=0", "keep is 0.0"),
        ("--layer", "fc1=2", "keep is 2.0"),
        ("--layer", "fc1=nan", "keep is nan"),
        ("--unit", "channel", "unit is 'channel'; it can be neuron, edge."),
        ("--method", "DPP", "method is 'DPP'"),
        ("--kernel", "cosine", "kernel is 'cosine'"),
        ("--refit", "ridge", "refit is 'ridge'"),
        ("--provider", "gpu", "provider is 'gpu'; it can be auto, cpu, cuda."),
        *[("--beta", beta, "beta is ") for beta in ("0", "-1", "nan", "inf", "1e-999")],
        *[("--epsilon", epsilon, "epsilon is ") for epsilon in ("0", "-1", "nan", "inf")],
        ("--round-to", "0", "round_to is 0"),
        ("--batch-size", "0", "batch_size is 0"),
        ("--max-rows", "-1", "max_rows is -1"),
        ("--seed", "-1", "seed is -1"),
        ("--seed", str(2**64), "seed is 18446744073709551616"),
        ("--report", "", "is a folder"),
        ("-o", "", "is a folder"),
    ],
)  # fmt: skip
def test_option_that_cannot_be(prune: Run, tmp_path: Path, option: str, value: str, message: str) -> None:
    with untouched(tmp_path):
        assert message in refusal(prune(option, value), 2)


@pytest.mark.parametrize("beta", ["1e-300", "1e300", "10"])
@pytest.mark.parametrize("epsilon", ["1e-300", "1e300", "0.01"])
@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("method", ["dpp", "dpp-sample"])
def test_extreme_kernels_work(prune: Run, beta: str, epsilon: str, unit: str, method: str) -> None:
    more = ["--unit", unit, "--method", method, "--dry-run", "--quiet"]
    assert prune("--beta", beta, "--epsilon", epsilon, *more) == Outcome(0, "", "")
    assert prune("--kernel", "linear", "--epsilon", epsilon, *more) == Outcome(0, "", "")


@pytest.mark.parametrize("way", ["name", "dots", "symlink", "hard link", "folder link", "calib"])
def test_output_that_is_an_input(prune: Run, net: Path, calib: Path, tmp_path: Path, way: str) -> None:
    out = tmp_path / "out.onnx"
    if way == "name":
        out = net
    elif way == "dots":
        (tmp_path / "below").mkdir()
        out = tmp_path / "below" / ".." / "net.onnx"
    elif way == "symlink":
        out.symlink_to(net)
    elif way == "hard link":
        out.hardlink_to(net)
    elif way == "folder link":
        (tmp_path / "link").symlink_to(tmp_path)
        out = tmp_path / "link" / "net.onnx"
    else:
        out = calib
    with untouched(tmp_path):
        assert f"Output '{out}' is the input" in refusal(prune("-o", out, "--force"), 2)
        assert f"Output '{out}' is the input" in refusal(prune("--report", out), 2)


def test_output_that_is_the_report(prune: Run, tmp_path: Path) -> None:
    with untouched(tmp_path):
        line = refusal(prune("-o", tmp_path / "a", "--report", tmp_path / "a"), 2)
    assert str(tmp_path / "a") in line


def test_output_exists(prune: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pruned.onnx").write_text("old")
    (tmp_path / "dangling.onnx").symlink_to(tmp_path / "nowhere")
    with untouched(tmp_path):
        assert "exists. Use --force to replace it." in refusal(prune(), 2)
        assert "exists. Use --force to replace it." in refusal(prune("-o", tmp_path / "dangling.onnx"), 2)


# 73: where nothing can be written


@pytest.mark.parametrize("option", ["-o", "--report"])
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("none/out", 5, "No such file or directory"),
        ("net.onnx/out", 5, "Not a directory"),
        ("folder", 2, "is a folder. Name a file in it."),
        ("fifo", 2, "is not a regular file"),
        ("/proc/out", 5, "Cannot write into the folder of '/proc/out'"),
    ],
)
def test_output_where_none_can_be(prune: Run, tmp_path: Path, option: str, name: str, code: int, message: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with untouched(tmp_path):
        assert message in refusal(prune(option, tmp_path / name), code)


def test_output_folder_of_another_user(onnxdpp: Run) -> None:
    with as_nobody() as folder:
        arguments = ["prune", folder / "net.onnx", "--calib", folder / "calib.npz", "--keep", 0.5, "--provider", "cpu"]
        with untouched(folder):
            os.seteuid(65534)
            try:
                outcome, dry = onnxdpp(*arguments), onnxdpp(*arguments, "--dry-run", "--quiet")
            finally:
                os.seteuid(0)
        assert "Cannot write into the folder of" in refusal(outcome, 5)
        assert dry == Outcome(0, "", "")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("what", ["model", "report"])
def test_disk_that_is_full(prune: Run, tmp_path: Path, existing: bool, what: str) -> None:
    import resource

    out, report = tmp_path / "net.pruned.onnx", tmp_path / "r.json"
    broken = out if what == "model" else report
    if existing:
        broken.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The pruned model takes 800 bytes, a report 2,000.
    limit, more = (500, []) if what == "model" else (1500, ["--report", report])
    before = contents(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        outcome = prune("--force", *more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refusal(outcome, 5) == f"onnxdpp: Cannot write '{broken}': File too large.\n"
    after = contents(tmp_path)
    if what == "report":
        after.pop("net.pruned.onnx")
    assert after == before


# 74: signals


def busy(model: Path, out: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A pruning that would take minutes, once it has reached onnxruntime."""
    process = spawn(
        "prune",
        model,
        "--calib",
        "random:99999999",
        "--keep",
        0.5,
        "--provider",
        "cpu",
        "-o",
        out,
        "--force",
        **options,
    )
    end = time.monotonic() + 60
    while "onnxruntime_pybind" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.7)
    assert process.poll() is None
    return process


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "onnxdpp: interrupted\n"), (signal.SIGTERM, 143, ""), (signal.SIGKILL, -9, "")],
)
def test_signal_in_the_middle_of_the_work(net: Path, tmp_path: Path, number: int, code: int, message: str) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("old")
    with untouched(tmp_path):
        process = busy(net, out)
        process.send_signal(number)
        assert process.communicate(timeout=30) == (b"", message.encode())
    assert process.returncode == code


# 77, 78: streams and surroundings


@pytest.mark.parametrize("command", ["inspect", "inspect --json", "prune", "prune --json"])
def test_stdout_whose_reader_has_gone(net: Path, calib: Path, command: str) -> None:
    name, *flags = command.split()
    rest = [] if name == "inspect" else ["--calib", calib, "--keep", 0.5, "--provider", "cpu"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        outcome = execute(name, net, *rest, *flags, stdout=writer)
    finally:
        os.close(writer)
    assert outcome == Outcome(0, "", "")
    assert net.with_name("net.pruned.onnx").exists() == (name == "prune")


def test_stdout_into_head(net: Path) -> None:
    line = f"set -o pipefail; {sys.executable} -m onnxdpp inspect {net} | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_stdout_on_a_full_disk(net: Path, flags: list[str]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        outcome = execute("inspect", net, *flags, stdout=full)
    assert refusal(outcome, 5) == "onnxdpp: Cannot write to standard output: No space left on device.\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_closed_from_the_start(net: Path, calib: Path, closed: str) -> None:
    line = f"exec {sys.executable} -m onnxdpp prune {net} --calib {calib} --keep 0.5 {closed}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert ("wrote" in done.stdout) == ("1>" not in closed)
    onnx.checker.check_model(net.with_name("net.pruned.onnx"))


def test_stderr_without_a_reader_changes_no_exit_code(net: Path, calib: Path, tmp_path: Path) -> None:
    arguments = ["prune", net, "--keep", 0.5, "--provider", "cpu"]
    for more, code in (
        (["--calib", tmp_path / "none.npz"], 3),
        (["--calib", calib, "--skip", "*"], 4),
        (["--calib", calib, "--kep", 1], 2),
        (["--calib", "random:9", "--json"], 0),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        outcome = execute(*arguments, *more, stderr=writer)
        os.close(writer)
        assert outcome.code == code
        assert bool(outcome.out) == (code == 0)


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8", "LC_NUMERIC": "de_DE.UTF-8"},
        {"PYTHONIOENCODING": "latin-1"},
        {"HOME": None, "TMPDIR": "/nonexistent", "TERM": None, "PATH": None},
        {"HOME": "/nonexistent", "COLUMNS": "20", "TERM": "dumb"},
    ],
    ids=lambda env: " ".join(f"{name}={value}" for name, value in env.items()),
)
def test_surroundings(tmp_path: Path, calib: Path, env: dict[str, str | None]) -> None:
    proto = mlp()
    proto.graph.node[0].name = "größe漢字"
    path = stored(proto, tmp_path / "größe 漢字.onnx")
    outcome = execute("prune", path, "--calib", calib, "--keep", 0.5, "--provider", "cpu", env=env)
    assert (outcome.code, outcome.err) == (0, "")
    assert ("größe漢字" in outcome.out) or ("\\u6f22" in outcome.out)
    assert "0.380" in outcome.out
    assert path.with_name("größe 漢字.pruned.onnx").is_file()


# 83-86: the machine


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Make packages (underscores for dashes) appear in other versions, or not at all."""
    pretended = {name.replace("_", "-"): value for name, value in versions.items()}

    def pretend(name: str) -> str:
        found = pretended[name] if name in pretended else version(name)
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(entry, "version", pretend)


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (
            {"onnxruntime": None, "onnxruntime_gpu": None},
            "onnxruntime is not installed. Run: pip install onnxruntime-gpu",
        ),
        (
            {"onnxruntime": "1.22.0", "onnxruntime_gpu": "1.22.0"},
            "Run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu (or onnxruntime)",
        ),
        ({"onnx": "1.20.1"}, "needs onnx >= 1.21, found 1.20.1. Run: pip install --upgrade onnx"),
        ({"onnx": "1.9.0"}, "found 1.9.0"),
        ({"onnx": None}, "needs onnx >= 1.21, found none. Run: pip install --upgrade onnx"),
    ],
)
def test_packages_missing_twofold_or_old(
    onnxdpp: Run, prune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: dict[str, Any], message: str
) -> None:
    installed(monkeypatch, **versions)
    with untouched(tmp_path):
        assert message in refusal(prune(), 5)
        assert message in refusal(onnxdpp("--version"), 5)


@pytest.mark.parametrize(
    "versions", [{"onnx": "1.21.0"}, {"onnx": "2.0.0"}, {"onnx": "1.22.0rc1"}, {"onnx": "1.22rc1"}]
)
def test_packages_new_enough(onnxdpp: Run, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    installed(monkeypatch, **versions)
    assert onnxdpp("--version").code == 0


@pytest.mark.parametrize(
    "error",
    [
        ImportError("numpy.core.multiarray failed to import"),
        ValueError("numpy.dtype size changed, may indicate binary incompatibility"),
        AttributeError("_ARRAY_API not found"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "prune"])
def test_packages_built_for_another_numpy(
    onnxdpp: Run, prune: Run, net: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, command: str
) -> None:
    def fail(name: str) -> None:
        if name in ("prune", "inspect"):
            raise error
        raise AttributeError(name)

    home = {"inspect": "onnxdpp.inspecting", "prune": "onnxdpp.api"}[command]
    broken = types.ModuleType(home)
    vars(broken)["__getattr__"] = fail
    monkeypatch.setitem(sys.modules, home, broken)
    line = refusal(onnxdpp("inspect", net) if command == "inspect" else prune(), 5)
    assert line.startswith("onnxdpp: A package cannot be imported: ")
    assert "In a folder with onnxdpp's sources, run: pip install --upgrade --force-reinstall ." in line


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA package without a device that works."""
    monkeypatch.setattr(calibration, "_why_no_cuda", lambda: "CUDA failure 100: no device")


@pytest.mark.usefixtures("no_cuda")
def test_provider_cuda_without_a_device(prune: Run, tmp_path: Path) -> None:
    with untouched(tmp_path):
        line = refusal(prune("--provider", "cuda"), 5)
    assert line == (
        "onnxdpp: No onnxruntime session runs on CUDA: CUDA failure 100: no device. Use --provider cpu, or auto.\n"
    )


@pytest.mark.usefixtures("no_cuda")
def test_provider_auto_without_a_device_says_so_in_one_line(prune: Run) -> None:
    outcome = prune("--provider", "auto", "--json")
    assert (outcome.code, outcome.err) == (0, "note: Runs on the CPU: CUDA failure 100: no device.\n")
    assert json.loads(outcome.out)["provider"] == "cpu"


def test_provider_cuda_is_real_or_refused(net: Path, calib: Path) -> None:
    """In a process of its own, its stdout a pipe: whatever this machine has, nothing else is said there."""
    outcome = execute("prune", net, "--calib", calib, "--keep", 0.5, "--provider", "cuda", "--json")
    if outcome.code == 0:
        assert json.loads(outcome.out)["provider"] == "cuda"
    else:
        assert "No onnxruntime session runs on CUDA: " in refusal(outcome, 5)


def test_provider_auto_keeps_stdout_clean(net: Path, calib: Path) -> None:
    outcome = execute("prune", net, "--calib", calib, "--keep", 0.5, "--provider", "auto", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["provider"] in ("cpu", "cuda")
    assert outcome.err.startswith("note: Runs on ")
    assert outcome.err.count("\n") == 1


def test_what_onnxruntime_prints_never_reaches_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with calibration._quiet_stdout():
        print("by print")
        os.write(1, b"on the descriptor\n")
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_cuda_is_asked_for_without_tf32() -> None:
    ((name, options), last) = calibration._providers("cuda")
    assert (name, options["use_tf32"], last) == ("CUDAExecutionProvider", "0", "CPUExecutionProvider")
    assert calibration._providers("cpu") == ["CPUExecutionProvider"]


def test_telemetry_writes_nothing_into_a_fresh_home(net: Path, calib: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    env: dict[str, str | None] = {"HOME": str(home), "XDG_CACHE_HOME": None}
    env |= dict.fromkeys(["ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS"])
    outcome = execute("prune", net, "--calib", calib, "--keep", 0.5, "--provider", "cpu", env=env)
    assert outcome.code == 0
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o000, 0o666)])
def test_output_follows_the_umask(prune: Run, tmp_path: Path, mask: int, mode: int) -> None:
    old = os.umask(mask)
    try:
        assert prune("--report", tmp_path / "r.json").code == 0
    finally:
        os.umask(old)
    for name in ("net.pruned.onnx", "r.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_report_on_the_output_by_another_path_is_refused(prune: Run, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    outcome = prune("-o", tmp_path / "d" / ".." / "o.onnx", "--report", tmp_path / "o.onnx")
    assert "Two outputs are the same file" in refusal(outcome, 2)
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_output_into_the_calibration_folder_is_refused(
    onnxdpp: Run, net: Path, calib: Path, tmp_path: Path, option: str
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    inside = folder / "a.npz"
    inside.write_bytes(calib.read_bytes())
    outcome = onnxdpp("prune", net, "--calib", folder, "--keep", 0.5, option, inside, "--force")
    assert "lies in the input folder" in refusal(outcome, 2) or "is the input" in outcome.err
    assert inside.read_bytes() == calib.read_bytes()


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_nan_in_a_bias_is_refused_by_name_and_count(prune: Run, net: Path, tmp_path: Path, name: str) -> None:
    proto = mlp()
    bias = constant(proto, name).copy()
    bias[1] = np.nan
    tensor(proto, name).CopyFrom(numpy_helper.from_array(bias, name))
    stored(proto, net)
    with untouched(tmp_path):
        assert f"Initializer '{name}' holds 1 NaN among {bias.size} entries" in refusal(prune(), 3)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_float64_beyond_reach_is_one_line(onnxdpp: Run, tmp_path: Path, scale: float) -> None:
    """Its squares leave float64: either it is pruned all the same, or it is said which layer is too much."""
    proto = in_type(TensorProto.DOUBLE)
    for name in ("w1", "b1"):
        tensor(proto, name).CopyFrom(numpy_helper.from_array(constant(proto, name) * scale, name))
    path = stored(proto, tmp_path / "far.onnx")
    for unit in ("neuron", "edge"):
        outcome = onnxdpp(
            "prune", path, "--calib", "random:64", "--keep", 0.5, "--unit", unit, "--provider", "cpu", "--force"
        )
        assert outcome.code in (0, 3)
        assert "Traceback" not in outcome.err
