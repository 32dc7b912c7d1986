"""Packed files from end to end: `pack`, `unpack`, `prune --storage`, and packed files through every other command.

What the forms are, byte by byte, is tested in `test_storage`.
"""

import copy
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from invoking import DIGITS, Outcome, contents, data, invoke, refusal, stored
from models import model, normal, run
from onnx import ModelProto, numpy_helper

import onnxdpp
from onnxdpp import forms
from onnxdpp.errors import ModelError, NothingToPrune, UsageError
from onnxdpp.evaluating import evaluate
from onnxdpp.graph.storage import is_packed
from onnxdpp.report import schema

Run = Callable[..., Outcome]

TEXT = """
    net (float[N, 32] x) => (float[N, 5] y) {
        [fc1] a = Gemm(x, w1, b1)
        p = Relu(a)
        [fc2] c = Gemm(p, w2, b2)
        q = Tanh(c)
        [fc3] y = Gemm(q, w3, b3)
    }"""
X = normal(300, 32)


def net(**options: Any) -> ModelProto:
    """Gemm, Relu, Gemm, Tanh, Gemm. Layers: fc1 (96), fc2 (64)."""
    shapes = {"w1": (32, 96), "b1": (96,), "w2": (96, 64), "b2": (64,), "w3": (64, 5), "b3": (5,)}
    return model(TEXT, **{**shapes, **options})


def masked(keep: float = 0.3, proto: ModelProto | None = None) -> ModelProto:
    """The same with zeros in place of the smallest weights."""
    result = copy.deepcopy(net() if proto is None else proto)
    for tensor in result.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim > 1:
            array[np.abs(array) < np.quantile(np.abs(array), 1 - keep)] = 0
            tensor.raw_data = array.tobytes()
    return result


def weights(proto: ModelProto) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in proto.graph.initializer}


def without(value: Any, *keys: str) -> Any:
    """A report without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without(part, *keys) for key, part in value.items() if key not in ("seconds", *keys)}
    return [without(part, *keys) for part in value] if isinstance(value, list) else value


@pytest.fixture
def onnxdpp_(capfd: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: invoke(capfd, *arguments)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return stored(masked(), tmp_path / "net.onnx")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "net.packed.onnx"
    onnxdpp.pack(masked(), provider="cpu").save(path)
    return path


# pack and unpack


@pytest.mark.parametrize("storage", ["auto", "packed", "sparse"])
def test_unpack_gives_back_what_was_packed(storage: str) -> None:
    original = masked(0.1)
    before = original.SerializeToString(deterministic=True)
    result = onnxdpp.pack(original, storage=storage, provider="cpu")
    assert original.SerializeToString(deterministic=True) == before
    assert len(result.model.SerializeToString()) < 0.7 * len(before)
    again = onnxdpp.unpack(result.model, provider="cpu")
    assert again.model.SerializeToString(deterministic=True) == before
    for part in (result, again):
        jsonschema.validate(part.report, schema("packing"))
        assert part.report["rows"] == 8


def test_packed_model_gives_the_same_bits() -> None:
    result = onnxdpp.pack(masked(), provider="cpu")
    assert run(result.model, {"x": X})[0].tobytes() == run(masked(), {"x": X})[0].tobytes()


def test_report_of_pack_is_that_of_the_files(tmp_path: Path, dense: Path) -> None:
    result = onnxdpp.pack(dense, provider="cpu")
    result.save(tmp_path / "out.onnx")
    report = result.report
    before, after = report["model"]["before"], report["model"]["after"]
    assert (before["bytes"], after["bytes"]) == (dense.stat().st_size, (tmp_path / "out.onnx").stat().st_size)
    assert (before["parameters"], before["nonzero"]) == (after["parameters"], after["nonzero"])
    assert before["nonzero"] < 0.4 * before["parameters"]
    sides = report["storage"]["files"]
    assert (sides["dense"]["bytes"], sides["stored"]["bytes"]) == (before["bytes"], after["bytes"])
    assert sides["stored"]["gzip_bytes"] < sides["dense"]["gzip_bytes"]
    assert all(0 < side["load"]["load_seconds"] < 10 for side in sides.values())
    tensors = {part["name"]: part for part in report["storage"]["tensors"]}
    assert {"w1", "w2"} <= set(tensors) <= {"w1", "w2", "w3"}
    totals = report["storage"]["totals"]
    assert totals == {key: sum(part[key] for part in tensors.values()) for key in totals}
    for part in tensors.values():
        kept = np.count_nonzero(
            numpy_helper.to_array(next(t for t in masked().graph.initializer if t.name == part["name"]))
        )
        assert part["nonzero"] == kept


def test_same_bytes_every_time(tmp_path: Path, dense: Path) -> None:
    for name in ("a", "b"):
        onnxdpp.pack(dense, provider="cpu").save(tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    again = onnxdpp.pack(tmp_path / "a.onnx", provider="cpu")
    assert again.model.SerializeToString(deterministic=True) == (tmp_path / "a.onnx").read_bytes()


def test_nodes_in_any_order_stay_as_they_are() -> None:
    proto = masked()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    assert onnxdpp.unpack(onnxdpp.pack(proto).model).model == proto


def test_float16_values_are_told() -> None:
    result = onnxdpp.pack(masked(), values="float16", provider="cpu")
    plain = onnxdpp.pack(masked(), provider="cpu")
    assert result.report["model"]["after"]["bytes"] < plain.report["model"]["after"]["bytes"]
    whole = onnxdpp.unpack(result.model, provider="cpu")
    assert whole.report["storage"]["values"] == "float16"
    old, new = weights(masked()), weights(whole.model)
    for part in result.report["storage"]["tensors"]:
        if part["form"] != "dense":
            gap = np.abs(np.frombuffer(old[part["name"]], np.float32) - np.frombuffer(new[part["name"]], np.float32))
            assert part["max_error"] == float(gap.max())
            assert 0 < part["max_error"] < 2e-3


def test_pattern_is_told_and_stays_dense_unless_asked_for() -> None:
    mask = np.tile(np.array([1, 0, 0, 1], bool), 8)[:, None]
    proto = net(w1=np.where(mask, normal(32, 96), 0))
    with pytest.raises(NothingToPrune) as caught:
        onnxdpp.pack(proto, provider="cpu")
    assert [name for name, _ in caught.value.refusals] == ["w1"]
    assert "2:4" in caught.value.refusals[0][1]
    (part,) = onnxdpp.pack(proto, storage="packed", provider="cpu").report["storage"]["tensors"]
    assert (part["pattern"], part["form"]) == ("2:4", "packed")


def test_nothing_to_pack_is_told() -> None:
    with pytest.raises(NothingToPrune, match=r"^Packing would not make any weight smaller: none has enough zeros\.$"):
        onnxdpp.pack(net(), provider="cpu")
    with pytest.raises(NothingToPrune, match="No weight of the model is packed"):
        onnxdpp.unpack(net(), provider="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "dense"}, "storage is dense: that is what unpack does"),
        ({"storage": "zip"}, "storage is 'zip'; it can be dense, packed, sparse, auto."),
        ({"values": "int8"}, "values is 'int8'; it can be same, float16."),
        ({"storage": "sparse", "values": "float16"}, "A sparse initializer holds values of its own type."),
        ({"provider": "tpu"}, "provider is 'tpu'; it can be auto, cpu, cuda."),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"opset": 16}, "opset is 16; it can be 17, as the model has, to"),
        ({"opset": 99}, "opset is 99; it can be 17, as the model has, to"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        onnxdpp.pack(masked(), **{"provider": "cpu", **options})
    assert str(caught.value).startswith(message)


# Old operators


def test_old_operators_are_told_and_can_be_converted() -> None:
    old = masked(proto=net(opset=9))
    with pytest.raises(NothingToPrune) as caught:
        onnxdpp.pack(old, provider="cpu")
    assert str(caught.value).endswith("of opset 9, too old to unpack weights: add --opset 13 to convert it.")
    result = onnxdpp.pack(old, opset=13, provider="cpu")
    jsonschema.validate(result.report, schema("packing"))
    assert result.report["opset"] == {"before": 9, "after": 13}
    np.testing.assert_allclose(run(result.model, {"x": X})[0], run(old, {"x": X})[0], rtol=1e-5, atol=1e-5)
    assert weights(onnxdpp.unpack(result.model, provider="cpu").model) == weights(old)


def test_conversion_of_a_file_that_lists_its_weights_among_the_inputs() -> None:
    old = masked(proto=net(opset=8, ir_version=3))
    result = onnxdpp.pack(old, opset=13, provider="cpu")
    assert [value.name for value in result.model.graph.input] == ["x"]
    np.testing.assert_allclose(run(result.model, {"x": X})[0], run(old, {"x": X})[0], rtol=1e-5, atol=1e-5)


def test_conversion_that_changes_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter with a fault, which onnx's own has had before."""
    old = masked(proto=net(opset=9))
    wrong = masked(proto=net(opset=13, seed=1))
    monkeypatch.setattr("onnxdpp.storing.converted", lambda model, opset: wrong)
    with pytest.raises(ModelError, match=r"Converted to opset 13, the model is not what it was: .* off by"):
        onnxdpp.pack(old, opset=13, provider="cpu")


def test_conversion_that_fails_is_one_line() -> None:
    old = model(
        "g (float[N, 32] x) => (float[N, 5] y) { y = local.both(x, w) }",
        opset=9, imports={"local": 1}, w=(32, 5),
        functions='<domain: "local", opset_import: ["": 9]> both (p, w) => (q) { q = MatMul(p, w) }',
    )  # fmt: skip
    with pytest.raises(
        ModelError, match="cannot be converted to opset 13: the converter of onnx does not know functions"
    ):
        onnxdpp.pack(old, opset=13, provider="cpu")


# Through every other command


def test_inspect_sees_the_dense_model(dense: Path, packed: Path) -> None:
    one, other = (onnxdpp.inspect(path, verify=True, provider="cpu") for path in (dense, packed))
    assert other["model"]["bytes"] == packed.stat().st_size < one["model"]["bytes"]
    for found in (one, other):
        del found["model"]["bytes"], found["model"]["sha256"]
    assert one == other


@pytest.mark.parametrize("options", [{"keep": 0.5}, {"unit": "edge", "keep": 0.2}, {"target_parameters": 0.3}])
def test_prune_gives_what_it_gives_of_the_dense_model(dense: Path, packed: Path, options: dict[str, Any]) -> None:
    options = {"method": "importance", "provider": "cpu", "storage": "dense", **options}
    one, other = (onnxdpp.prune(path, {"x": X}, **options) for path in (dense, packed))
    assert one.model.SerializeToString(deterministic=True) == other.model.SerializeToString(deterministic=True)
    assert without(one.report["layers"]) == without(other.report["layers"])
    assert one.report["storage"] is None


def test_pruned_neurons_of_a_packed_model_are_packed_again(dense: Path, packed: Path) -> None:
    options = {"keep": 0.9, "refit": "none", "provider": "cpu"}
    one, other = (onnxdpp.prune(path, {"x": X}, **options) for path in (dense, packed))
    assert not is_packed(one.model)
    assert is_packed(other.model)
    assert weights(onnxdpp.unpack(other.model, provider="cpu").model) == weights(one.model)


def test_apply_and_budgets_of_a_packed_model(packed: Path) -> None:
    first = onnxdpp.prune(packed, {"x": X}, target_macs=0.5, method="dpp", provider="cpu")
    again = onnxdpp.prune(packed, {"x": X}, apply=first.report, provider="cpu")
    assert [layer["keep"] for layer in again.report["layers"]] == [layer["keep"] for layer in first.report["layers"]]


def test_compare_gives_what_it_gives_of_the_dense_model(dense: Path, packed: Path) -> None:
    options = {"keeps": [0.5], "methods": ["importance"], "repeat": 1, "provider": "cpu", "unit": "both"}
    one, other = (onnxdpp.compare_methods(path, {"x": X}, **options) for path in (dense, packed))
    for found in (one, other):
        del found["model"]["bytes"], found["model"]["sha256"]
    assert without(one) == without(other)


def test_evaluate_counts_the_dense_model_and_weighs_the_file(dense: Path, packed: Path) -> None:
    found = evaluate(dense, packed, {"x": X}, latency=False, memory=False, provider="cpu")
    assert found["discrepancy"]["y"]["relative_l2"] == 0
    before, after = found["model"]["before"], found["model"]["after"]
    assert after["bytes"] == packed.stat().st_size
    assert after["gzip_bytes"] < before["gzip_bytes"]
    for key in ("parameters", "nonzero", "macs"):
        assert before[key] == after[key]


def test_evaluate_runs_what_it_is_given(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both for the answers and for latency: four pairs of sessions for each of two sizes."""
    seen: list[bool] = []
    real = onnxdpp.evaluating.Session

    def watched(proto: ModelProto, *arguments: Any, **options: Any) -> Any:
        seen.append(is_packed(proto))
        return real(proto, *arguments, **options)

    monkeypatch.setattr("onnxdpp.evaluating.Session", watched)
    monkeypatch.setattr("onnxdpp.latency.SECONDS", 0.0)
    evaluate(packed, packed, {"x": X}, memory=False, provider="cpu")
    assert len(seen) == 2 + 2 * 8
    assert all(seen)


# Edges


def pruned(**options: Any) -> onnxdpp.PruneResult:
    return onnxdpp.prune(
        net(), {"x": X}, **{"unit": "edge", "keep": 0.3, "method": "obs", "provider": "cpu", **options}
    )


def test_edges_are_packed_by_default_and_answer_the_same() -> None:
    small, whole = pruned(), pruned(storage="dense")
    jsonschema.validate(small.report, schema("report"))
    assert is_packed(small.model)
    assert not is_packed(whole.model)
    assert run(small.model, {"x": X})[0].tobytes() == run(whole.model, {"x": X})[0].tobytes()
    assert small.report["discrepancy"] == whole.report["discrepancy"]
    assert weights(onnxdpp.unpack(small.model, provider="cpu").model) == weights(whole.model)
    assert whole.report["storage"] is None
    before, after = whole.report["model"]["after"], small.report["model"]["after"]
    assert (before["parameters"], before["nonzero"]) == (after["parameters"], after["nonzero"])
    assert after["bytes"] == len(small.model.SerializeToString(deterministic=True)) < 0.6 * before["bytes"]
    assert any("pack last" in notice for notice in small.report["notices"])
    assert not any("pack last" in notice for notice in whole.report["notices"])


def test_edges_as_sparse_initializers() -> None:
    result = pruned(storage="sparse", keep=0.1)
    forms = {part["name"]: part["form"] for part in result.report["storage"]["tensors"]}
    assert forms == {"w1": "sparse", "w2": "sparse", "w3": "dense"}
    assert {sparse.values.name for sparse in result.model.graph.sparse_initializer} == {"w1", "w2"}
    assert not any("pack last" in notice for notice in result.report["notices"])
    assert (
        run(result.model, {"x": X})[0].tobytes() == run(pruned(storage="dense", keep=0.1).model, {"x": X})[0].tobytes()
    )


@pytest.mark.parametrize("method", ["importance", "dpp", "obs", "omp", "auto"])
def test_second_pruning_of_the_packed_file_keeps_the_mask(method: str) -> None:
    first = pruned(method=method, refit="affine")
    second = onnxdpp.prune(first.model, {"x": X}, unit="edge", keep=0.3, method=method, provider="cpu")
    masks = [
        {
            tensor.name: numpy_helper.to_array(tensor) != 0
            for tensor in onnxdpp.unpack(part.model).model.graph.initializer
        }
        for part in (first, second)
    ]
    for name in ("w1", "w2", "w3"):
        np.testing.assert_array_equal(masks[0][name], masks[1][name])


@pytest.mark.parametrize(("unit", "told"), [("neuron", "neurons first, then edges"), ("edge", "values float16")])
def test_larger_file_than_the_packed_one_is_told(unit: str, told: str) -> None:
    first = pruned(keep=0.1, values="float16")
    options: dict[str, Any] = {"unit": unit, "method": "importance", "provider": "cpu"}
    second = onnxdpp.prune(first.model, {"x": X}, keep=0.9, **options)
    before, after = (second.report["model"][side]["bytes"] for side in ("before", "after"))
    (notice,) = (text for text in second.report["notices"] if text.startswith("The packed file that was given"))
    assert f"has {before:,} bytes, this one {after:,}: " in notice
    assert told in notice
    assert any(told in text for text in onnxdpp.pack(first.model).report["notices"]) == (unit == "edge")
    smaller = onnxdpp.prune(first.model, {"x": X}, keep=0.1, **options, values="float16")
    assert not any("was given has" in text for text in smaller.report["notices"])


def test_nothing_to_unpack_in_what_a_simplifier_made_dense() -> None:
    packed = onnxdpp.pack(masked()).model
    simplified = onnxdpp.unpack(packed).model
    simplified.metadata_props.extend(packed.metadata_props)
    with pytest.raises(NothingToPrune, match="packed any more"):
        onnxdpp.unpack(simplified)
    assert onnxdpp.pack(simplified).model.SerializeToString() == packed.SerializeToString()


def test_float16_that_changes_nothing_is_told() -> None:
    told = "No weight is packed, so that float16 values change none."
    whole = pruned(unit="neuron", keep=0.5, values="float16")
    assert told in whole.report["notices"]
    assert told not in pruned(values="float16").report["notices"]


def test_report_of_rounded_values_is_that_of_the_file() -> None:
    plain, rounded = pruned(), pruned(values="float16")
    jsonschema.validate(rounded.report, schema("report"))
    found = evaluate(net(), rounded.model, {"x": X}, latency=False, memory=False, provider="cpu")
    assert rounded.report["discrepancy"] == found["discrepancy"]
    assert rounded.report["discrepancy"] != plain.report["discrepancy"]
    assert rounded.report["model"]["after"]["bytes"] < plain.report["model"]["after"]["bytes"]


@pytest.mark.parametrize("values", ["same", "float16"])
def test_target_bytes_of_edges(values: str) -> None:
    goal = 15_000
    result = pruned(keep=None, target_bytes=goal, values=values)
    size = len(result.model.SerializeToString(deterministic=True))
    assert 0.97 * goal < size == result.report["model"]["after"]["bytes"] <= goal


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("goal", [2950, 12_000])
def test_target_bytes_of_edges_far_apart(goal: int, transposed: int) -> None:
    proto = model(
        f"g (float[N, 3072] x) => (float[N, 20] y) {{ y = Gemm <transB = {transposed}> (x, w, b) }}",
        w=(20, 3072) if transposed else (3072, 20), b=(20,),
    )  # fmt: skip
    options: dict[str, Any] = {"unit": "edge", "method": "importance", "storage": "packed", "provider": "cpu"}
    result = onnxdpp.prune(proto, {"x": normal(50, 3072)}, target_bytes=goal, **options)
    size = len(result.model.SerializeToString(deterministic=True))
    assert 0.8 * goal < size == result.report["model"]["after"]["bytes"] <= goal


def test_target_bytes_of_edges_holds_where_weights_are_zero_before() -> None:
    """Inputs whose edges are gone already, at the front of the weight."""
    weight = normal(400, 20)
    weight[:200] = 0
    proto = model("g (float[N, 400] x) => (float[N, 20] y) { y = Gemm(x, w, b) }", w=weight, b=(20,))
    options: dict[str, Any] = {"unit": "edge", "method": "importance", "provider": "cpu"}
    result = onnxdpp.prune(proto, {"x": normal(50, 400)}, target_bytes=9000, **options)
    assert 0.97 * 9000 < len(result.model.SerializeToString(deterministic=True)) <= 9000


def test_target_bytes_of_edges_that_cannot_be() -> None:
    with pytest.raises(
        UsageError, match=r"The smallest model that can be reached has [\d,]+ bytes, and the goal is 1,000\. Raise it\."
    ):
        pruned(keep=None, target_bytes=1000)
    with pytest.raises(UsageError, match="Edges that are written as zeros save no bytes"):
        pruned(keep=None, target_bytes=15_000, storage="dense")


def test_model_that_is_not_the_same_packed_is_written_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "flaw_of", lambda *_: "output 'y' differs.")
    result = pruned()
    assert not is_packed(result.model)
    assert result.report["storage"] is None
    assert weights(result.model) == weights(pruned(storage="dense").model)
    assert "the packed model is not what it was: output 'y' differs." in result.report["notices"][-1]


def test_flaw_is_found() -> None:
    """The proof sees a packed model that is another."""
    form = forms.form_of(masked(), None, "auto", "same")
    other = forms.form_of(masked(0.29), None, "auto", "same")
    graph = forms.Graph(form.dense)
    batch = forms.Batch({"x": X}, 0, len(X))
    assert forms.flaw_of(form, graph, "cpu", batch) is None
    assert forms.flaw_of(replace(form, model=other.model), graph, "cpu", batch) == "output 'y' differs."
    broken = copy.deepcopy(form.model)
    del broken.graph.node[0]
    assert "which nothing writes" in str(forms.flaw_of(replace(form, model=broken), graph, "cpu", batch))


# The command line


def test_pack_and_unpack_beside_the_model(onnxdpp_: Run, dense: Path) -> None:
    before = dense.read_bytes()
    outcome = onnxdpp_("pack", dense, "--provider", "cpu")
    assert outcome.code == 0, outcome
    assert "pack last" in outcome.err
    out = dense.with_name("net.packed.onnx")
    assert f"wrote {out} (packed and dense give the same bits on 8 random rows on cpu, " in outcome.out
    assert "bits and values" in outcome.out
    outcome = onnxdpp_("unpack", out, "--provider", "cpu", "-o", dense.with_name("back.onnx"))
    assert outcome.code == 0, outcome
    assert onnx.load(dense.with_name("back.onnx")) == onnx.load(dense)
    assert dense.read_bytes() == before
    assert onnxdpp_("unpack", out, "--provider", "cpu", "--quiet") == Outcome(0, "", "")
    assert dense.with_name("net.packed.unpacked.onnx").read_bytes() == dense.with_name("back.onnx").read_bytes()


def test_pack_prints_json_that_the_schema_knows(onnxdpp_: Run, dense: Path, tmp_path: Path) -> None:
    outcome = onnxdpp_("pack", dense, "--provider", "cpu", "--json", "--report", tmp_path / "r.json")
    report = json.loads(outcome.out)
    jsonschema.validate(report, schema("packing"))
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == outcome.out
    assert report["options"] == {"storage": "auto", "values": "same", "opset": None, "provider": "cpu", "seed": 0}


def test_pack_errors_are_one_line(onnxdpp_: Run, dense: Path, packed: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert "exists. Use --force to replace it." in refusal(onnxdpp_("pack", dense), 2)
    assert "is the input" in refusal(onnxdpp_("pack", dense, "-o", dense, "--force"), 2)
    assert "OUT is '-'" in refusal(onnxdpp_("pack", dense, "-o", "-"), 2)
    assert "does not exist" in refusal(onnxdpp_("pack", tmp_path / "no.onnx"), 3)
    assert "storage is 'zip'" in refusal(onnxdpp_("pack", dense, "-o", tmp_path / "o.onnx", "--storage", "zip"), 2)
    assert "No weight of the model is packed" in refusal(onnxdpp_("unpack", dense), 4)
    assert contents(tmp_path) == before


def test_nothing_to_pack_ends_with_4(onnxdpp_: Run, tmp_path: Path) -> None:
    old = stored(masked(proto=net(opset=9)), tmp_path / "old.onnx")
    outcome = onnxdpp_("pack", old, "--provider", "cpu")
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.startswith(
        "onnxdpp: Packing would not make any weight smaller. The operators of the model are of opset 9"
    )
    assert "\n  w1" in outcome.err
    assert "--opset 13" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.onnx"]
    assert onnxdpp_("pack", old, "--provider", "cpu", "--opset", 13).code == 0


def test_metadata_that_lie_are_refused(onnxdpp_: Run, packed: Path, tmp_path: Path) -> None:
    broken = onnx.load(packed)
    del broken.graph.node[0]
    message = refusal(onnxdpp_("inspect", stored(broken, tmp_path / "broken.onnx")), 3)
    assert "broken.onnx" in message or "pack" in message


def test_prune_command_packs_edges(onnxdpp_: Run, tmp_path: Path) -> None:
    source = stored(net(), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", X)
    line = ("prune", source, "--calib", tmp_path / "x.npy", "--unit", "edge", "--keep", 0.2, "--method", "obs")
    outcome = onnxdpp_(*line, "--provider", "cpu")
    assert outcome.code == 0, outcome
    assert "bits and values" in outcome.out
    assert "note: Packed weights are unpacked by onnxruntime" in outcome.err
    out = tmp_path / "net.pruned.onnx"
    assert is_packed(onnx.load(out))
    assert onnxdpp_(*line, "--provider", "cpu", "--storage", "dense", "--force").code == 0
    assert not is_packed(onnx.load(out))


# Elsewhere


def test_external_data(tmp_path: Path) -> None:
    onnx.save(masked(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    result = onnxdpp.pack(tmp_path / "net.onnx", provider="cpu")
    result.save(tmp_path / "small.onnx")
    assert (
        result.report["storage"]["files"]["stored"]["bytes"] < 0.6 * result.report["storage"]["files"]["dense"]["bytes"]
    )
    found = evaluate(tmp_path / "net.onnx", tmp_path / "small.onnx", {"x": X}, provider="cpu", latency=False)
    assert found["discrepancy"]["y"]["max_abs"] == 0
    onnxdpp.unpack(tmp_path / "small.onnx", provider="cpu").save(tmp_path / "back.onnx")
    assert weights(onnx.load(tmp_path / "back.onnx")) == weights(masked())


def test_model_that_takes_no_random_rows_is_packed_all_the_same() -> None:
    """Its second input is a number of rows, which random numbers are not."""
    text = """g (float[N, 32] x, int64[1] k) => (float[N, 5] y) {
        a = MatMul(x, w1)
        s = Reshape(a, k)
        t = Reshape(s, back)
        y = MatMul(t, w2)
    }"""
    proto = masked(proto=model(text, w1=(32, 96), w2=(96, 5), back=np.array([-1, 96])))
    result = onnxdpp.pack(proto, provider="cpu")
    assert result.report["rows"] == 0
    assert "takes no random rows" in result.report["notices"][0]


def test_page_shows_the_storage() -> None:
    text = pruned().html()
    assert 'id="storage"' in text
    assert "bits and values" in text
    assert "onnxdpp prune MODEL.onnx --calib DATA --keep 0.3 --unit edge --method obs" in text
    assert 'id="storage"' not in pruned(storage="dense").html()
    for values in ("same", "float16"):
        shown = pruned(values=values).html()
        assert "built-in" not in shown
        assert (", float16" in shown) == (values == "float16")


def test_summary_shows_the_storage() -> None:
    from onnxdpp.summary import summary

    assert "| w1 | 9" in summary(pruned().report)


@pytest.mark.skipif(not DIGITS.exists(), reason="no digits")
def test_digits_edges_are_smaller_in_proportion(tmp_path: Path) -> None:
    """What the README says: bytes follow what was kept."""
    with np.load(DIGITS / "calib.npz") as arrays:
        rows = {"input": arrays["input"][:300]}
    result = onnxdpp.prune(DIGITS / "model.onnx", rows, unit="edge", keep=0.2, method="importance", provider="cpu")
    sizes = result.report["model"]
    assert sizes["after"]["bytes"] < 0.24 * sizes["before"]["bytes"]
    assert sys.getsizeof(data()) > 0


def test_rounded_values_are_told_with_what_they_do_to_the_answers() -> None:
    found = onnxdpp.pack(masked(), values="float16", provider="cpu").report
    (told,) = (notice for notice in found["notices"] if notice.startswith("Values are rounded to float16"))
    moved = float(re.search(r"moves by (\S+) \(relative L2\)", told)[1])  # type: ignore[index]
    assert 1e-6 < moved < 1e-2


def test_rounded_values_do_not_stop_at_outputs_that_count() -> None:
    proto = masked()
    proto.graph.node.extend([onnx.helper.make_node("NonZero", [proto.graph.output[0].name], ["places"])])
    proto.graph.output.append(onnx.helper.make_tensor_value_info("places", onnx.TensorProto.INT64, ["R", "N"]))
    assert onnxdpp.pack(proto, values="float16", provider="cpu").report["storage"]["values"] == "float16"
