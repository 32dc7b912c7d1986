"""The command line as a stranger uses it: every option, what goes where, and the same bytes for the same call."""

import contextlib
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from invoking import (
    DIGITS,
    Outcome,
    answers,
    contents,
    data,
    execute,
    invoke,
    mlp,
    refusal,
    spawn,
    stored,
)
from threadpoolctl import threadpool_limits

from onnxdpp.report import schema
from onnxdpp.verifying import Verdict

Run = Callable[..., Outcome]

needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")


@pytest.fixture
def onnxdpp(capfd: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: invoke(capfd, *arguments)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The network 8-16-12-3 (layers fc1, fc2), alone in its folder."""
    (tmp_path / "models").mkdir()
    return stored(mlp(), tmp_path / "models" / "net.onnx")


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    """64 rows for the model, in another folder."""
    np.savez(tmp_path / "calib.npz", x=data())
    return tmp_path / "calib.npz"


@pytest.fixture
def prune(onnxdpp: Run, model: Path, calib: Path) -> Run:
    """`onnxdpp prune MODEL --calib DATA --keep 0.5 --provider cpu` and what else is given."""
    return lambda *more: onnxdpp("prune", model, "--calib", calib, "--keep", 0.5, "--provider", "cpu", *more)


@pytest.fixture
def report(prune: Run) -> Callable[..., dict[str, Any]]:
    """The report of a pruning that must succeed."""

    def run(*more: object) -> dict[str, Any]:
        outcome = prune("--json", *more)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        parsed: dict[str, Any] = json.loads(outcome.out)
        jsonschema.validate(parsed, schema("report"))
        return parsed

    return run


def kept(report: dict[str, Any]) -> dict[str, int]:
    return {layer["name"]: layer["kept"] for layer in report["layers"]}


# The main job


def test_prune_digits_as_the_readme_says(onnxdpp: Run, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    outcome = onnxdpp(
        "prune", DIGITS / "model.onnx", "--calib", DIGITS / "calib.npz", "--keep", 0.3, "-o", out, "--provider", "cpu"
    )
    assert (outcome.code, outcome.err) == (0, "")
    for line in (
        r"fc1 +500 +150 +(?:dpp|obs|omp|importance) +[\d.]+ +0\.0\d+ +\d+\.\d\d",
        r"parameters +288,010 +33,910 +0\.118",
        r"non-zeros +288,010 +33,9\d\d +0\.118",
        rf"file bytes +1,152,593 +{out.stat().st_size:,} +0\.118",
        r"MACs per row +287,000 +33,600 +0\.117",
        r"logits +0\.0\d+ +[\d.]+ +[\d.]+ +[01][\d.]*",
        r"fc3 +its value 'logits' is a graph output",
        rf"wrote {re.escape(str(out))} \(1,297 calibration rows on cpu, seed 0, \d+\.\d s\)",
    ):
        assert re.search(rf"^{line}$", outcome.out, re.MULTILINE), line
    with np.load(DIGITS / "test.npz") as test:
        (logits,) = answers(out, input=test["input"])
        assert np.mean(logits.argmax(axis=1) == test["labels"]) > 0.95


def test_output_beside_the_model_by_default(prune: Run, model: Path) -> None:
    before = model.read_bytes()
    assert prune().code == 0
    assert sorted(path.name for path in model.parent.iterdir()) == ["net.onnx", "net.pruned.onnx"]
    assert model.read_bytes() == before


@pytest.mark.parametrize("name", ["net", "net.v2.onnx", "with space.onnx", "größe 漢字.onnx"])
def test_output_by_default_of_unusual_names(onnxdpp: Run, model: Path, calib: Path, name: str) -> None:
    renamed = model.rename(model.with_name(name))
    outcome = onnxdpp("prune", renamed, "--calib", calib, "--keep", 0.5, "--provider", "cpu")
    assert outcome.code == 0
    assert model.with_name(f"{Path(name).stem}.pruned.onnx").is_file()


def test_output_of_a_bare_name_in_the_working_folder(
    onnxdpp: Run, model: Path, calib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    assert onnxdpp("prune", "net.onnx", "--calib", "../calib.npz", "--keep", 0.5, "--provider", "cpu").code == 0
    assert Path("net.pruned.onnx").is_file()


def test_output_long_option(prune: Run, tmp_path: Path, model: Path) -> None:
    assert prune("--output", tmp_path / "a.onnx").code == 0
    assert (tmp_path / "a.onnx").is_file()
    assert len(list(model.parent.iterdir())) == 1


def test_output_runs_and_is_smaller(prune: Run, model: Path, tmp_path: Path) -> None:
    prune("-o", tmp_path / "a.onnx")
    pruned = onnx.load(tmp_path / "a.onnx")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in pruned.graph.initializer}
    assert (shapes["w1"], shapes["w2"], shapes["w3"]) == ((8, 8), (8, 6), (6, 3))
    assert answers(tmp_path / "a.onnx", x=data(5))[0].shape == (5, 3)


# What goes where


def test_json_alone_on_stdout_is_the_report(prune: Run, model: Path) -> None:
    outcome = prune("--json")
    assert (outcome.code, outcome.err) == (0, "")
    report = json.loads(outcome.out)
    jsonschema.validate(report, schema("report"))
    before, after = report["model"]["before"], report["model"]["after"]
    out = model.with_name("net.pruned.onnx")
    assert before["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert after["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (before["bytes"], after["bytes"]) == (model.stat().st_size, out.stat().st_size)
    assert (before["parameters"], before["macs"]) == (
        8 * 16 + 16 + 16 * 12 + 12 + 12 * 3 + 3,
        8 * 16 + 16 * 12 + 12 * 3,
    )
    assert (after["parameters"], after["macs"]) == (8 * 8 + 8 + 8 * 6 + 6 + 6 * 3 + 3, 8 * 8 + 8 * 6 + 6 * 3)
    assert [layer["keep"] == sorted(set(layer["keep"])) for layer in report["layers"]] == [True, True]
    assert report["refusals"] == [{"name": "fc3", "reason": "its value 'y' is a graph output"}]
    assert report["versions"]["onnxdpp"] == version("onnxdpp")


def test_notices_go_to_stderr(onnxdpp: Run, model: Path, tmp_path: Path) -> None:
    outcome = onnxdpp(
        "prune", model, "--calib", "random:32", "--keep", 0.5, "--provider", "cpu", "--json", "-o", tmp_path / "o.onnx"
    )
    assert outcome.code == 0
    assert outcome.err.startswith("note: The calibration data are random")
    report = json.loads(outcome.out)
    assert report["random_data"] is True
    assert report["rows"] == 32
    assert [f"note: {notice}" for notice in report["notices"]] == outcome.err.splitlines()


def test_report_file_is_what_json_prints(prune: Run, tmp_path: Path) -> None:
    outcome = prune("--json", "--report", tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == outcome.out


def test_report_beside_tables(prune: Run, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("old")
    assert prune("--report", tmp_path / "r.json").code == 2
    outcome = prune("--report", tmp_path / "r.json", "--force")
    assert outcome.out.startswith(" ")
    jsonschema.validate(json.loads((tmp_path / "r.json").read_text()), schema("report"))


@pytest.mark.parametrize("more", [[], ["--calib", "random:16"]])
def test_quiet_prints_nothing(prune: Run, model: Path, more: list[str]) -> None:
    assert prune("--quiet", *more) == Outcome(0, "", "")
    assert model.with_name("net.pruned.onnx").is_file()


def test_quiet_with_json_prints_it(prune: Run) -> None:
    outcome = prune("--quiet", "--json", "--calib", "random:16")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["rows"] == 16


def test_quiet_does_not_hide_errors(prune: Run) -> None:
    assert "seed is -1" in refusal(prune("--quiet", "--seed", -1), 2)


def test_dry_run_writes_nothing(prune: Run, tmp_path: Path, model: Path) -> None:
    model.with_name("net.pruned.onnx").write_text("old")
    before = contents(tmp_path)
    outcome = prune("--dry-run")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1].startswith("dry run: nothing written (64 calibration rows")
    assert contents(tmp_path) == before


def test_dry_run_tells_what_the_run_then_does(prune: Run, model: Path) -> None:
    told = json.loads(prune("--dry-run", "--json").out)["model"]["after"]["sha256"]
    prune()
    assert hashlib.sha256(model.with_name("net.pruned.onnx").read_bytes()).hexdigest() == told


def test_force_replaces(prune: Run, model: Path) -> None:
    out = model.with_name("net.pruned.onnx")
    out.write_text("old")
    assert "exists. Use --force" in refusal(prune(), 2)
    assert out.read_text() == "old"
    assert prune("--force").code == 0
    onnx.checker.check_model(out)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    outcome = execute("inspect", tmp_path / "none.onnx", "--debug")
    assert outcome.code == 3
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("onnxdpp: Model file")


# What is pruned


def test_layer_pattern_restricts(report: Callable[..., dict[str, Any]]) -> None:
    found = report("--layer", "fc2")
    assert kept(found) == {"fc2": 6}
    assert {"name": "fc1", "reason": "no --layer pattern names it"} in found["refusals"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*=0.25"], {"fc1": 4, "fc2": 3}),
        (["fc[12]"], {"fc1": 8, "fc2": 6}),
        (["fc?=0.25", "fc2=0.75"], {"fc1": 4, "fc2": 9}),
        (["fc2=0.75", "fc?=0.25"], {"fc1": 4, "fc2": 3}),
        (["fc2=0.75", "fc?"], {"fc1": 8, "fc2": 6}),
        (["fc1=1"], {"fc1": 16}),
    ],
)
def test_layer_patterns_the_last_match_decides(
    report: Callable[..., dict[str, Any]], patterns: list[str], expected: dict[str, int]
) -> None:
    assert kept(report(*(part for pattern in patterns for part in ("--layer", pattern)))) == expected


def test_layer_pattern_is_split_at_the_last_equals_sign(onnxdpp: Run, model: Path, calib: Path) -> None:
    net = onnx.load(model)
    net.graph.node[0].name = "a=b"
    stored(net, model)
    arguments = ["prune", model, "--calib", calib, "--keep", 0.5, "--provider", "cpu", "--dry-run", "--json"]
    assert kept(json.loads(onnxdpp(*arguments, "--layer", "a=b=0.25").out)) == {"a=b": 4}
    line = refusal(onnxdpp(*arguments, "--layer", "a=b"), 2)
    assert line == (
        "onnxdpp: The keep of layer pattern 'a' is 'b', not a number. "
        "Write PATTERN=KEEP; for a name that holds '=', write 'a=b=0.5'.\n"
    )


@pytest.mark.parametrize("option", ["--layer", "--skip"])
@pytest.mark.parametrize("pattern", ["FC1", "fc", "", "conv*", "fc1 "])
def test_pattern_that_matches_nothing(prune: Run, tmp_path: Path, option: str, pattern: str) -> None:
    before = contents(tmp_path)
    line = refusal(prune("--layer", "fc1", option, pattern), 2)
    assert line == (f"onnxdpp: The pattern {pattern!r} matches no layer. Layers that can be pruned: 'fc1', 'fc2'.\n")
    assert contents(tmp_path) == before


def test_skip_protects(report: Callable[..., dict[str, Any]]) -> None:
    found = report("--skip", "fc1", "--layer", "fc*=0.25")
    assert kept(found) == {"fc2": 3}
    assert {"name": "fc1", "reason": "protected by --skip fc1"} in found["refusals"]


def test_skip_of_everything_leaves_nothing_to_prune(prune: Run, tmp_path: Path) -> None:
    before = contents(tmp_path)
    outcome = prune("--skip", "fc*")
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.splitlines() == [
        "onnxdpp: Nothing can be pruned: none of 3 candidate layers may be cut.",
        "  fc3: its value 'y' is a graph output",
        "  fc1, fc2: protected by --skip fc*",
    ]
    assert contents(tmp_path) == before


def test_round_to(report: Callable[..., dict[str, Any]]) -> None:
    assert kept(report("--round-to", 4, "--keep", 0.3)) == {"fc1": 4, "fc2": 4}


def test_keep_given_twice_the_last_counts(report: Callable[..., dict[str, Any]]) -> None:
    assert kept(report("--keep", 0.25)) == {"fc1": 4, "fc2": 3}


@pytest.mark.parametrize("keep", ["1", "1.0", ".5", "5e-1"])
def test_keep_forms(prune: Run, keep: str) -> None:
    assert prune("--keep", keep).code == 0


def test_keep_tiny_keeps_one(report: Callable[..., dict[str, Any]]) -> None:
    assert kept(report("--keep", 1e-9)) == {"fc1": 1, "fc2": 1}


def test_keep_all_without_refit_gives_the_same_bytes(prune: Run, model: Path) -> None:
    assert prune("--keep", 1, "--refit", "none").code == 0
    assert model.with_name("net.pruned.onnx").read_bytes() == model.read_bytes()


@pytest.mark.parametrize("method", ["dpp", "dpp-sample", "importance", "random"])
@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("refit", ["affine", "linear", "none"])
def test_methods_units_refits(
    report: Callable[..., dict[str, Any]], model: Path, method: str, unit: str, refit: str
) -> None:
    found = report("--method", method, "--unit", unit, "--refit", refit)
    kernel = "rbf" if method.startswith("dpp") else None
    names = ["fc1", "fc2"] if unit == "neuron" else ["fc1", "fc2", "fc3"]
    assert [layer["name"] for layer in found["layers"]] == names
    for layer in found["layers"]:
        assert (layer["unit"], layer["method"], layer["kernel"], layer["refit"]) == (unit, method, kernel, refit)
        assert (layer["keep"] is None) == (unit == "edge")
        assert (layer["beta"] is None) == (kernel is None)
        if refit == "none":
            assert layer["loss"] == layer["loss_before_refit"]
        elif refit == "affine":
            assert layer["loss"] <= layer["loss_before_refit"]
    assert np.isfinite(answers(model.with_name("net.pruned.onnx"), x=data(9))[0]).all()


def test_edges_keep_as_many_for_each_output(report: Callable[..., dict[str, Any]], model: Path) -> None:
    found = report("--unit", "edge", "--layer", "fc2=0.25")
    assert kept(found) == {"fc2": 4}
    pruned = onnx.load(model.with_name("net.pruned.onnx"))
    (w2,) = (onnx.numpy_helper.to_array(t) for t in pruned.graph.initializer if t.name == "w2")
    assert np.count_nonzero(w2, axis=0).tolist() == [4] * 12
    sizes = found["model"]
    assert sizes["before"]["nonzero"] - sizes["after"]["nonzero"] == 12 * 12


def test_beta_of_the_papers_and_epsilon(report: Callable[..., dict[str, Any]]) -> None:
    found = report("--beta", 10, "--epsilon", "0.02")
    assert [layer["beta"] for layer in found["layers"]] == [10.0, 10.0]
    assert (found["options"]["beta"], found["options"]["epsilon"]) == (10.0, 0.02)


def test_beta_auto_is_said_as_used(report: Callable[..., dict[str, Any]]) -> None:
    found = report("--method", "dpp", "--beta", "auto")
    assert found["options"]["beta"] == "auto"
    assert all(layer["beta"] > 0 for layer in found["layers"])


def test_kernel_linear_has_no_beta(report: Callable[..., dict[str, Any]]) -> None:
    found = report("--kernel", "linear")
    assert [(layer["kernel"], layer["beta"]) for layer in found["layers"]] == [("linear", None)] * 2


@pytest.mark.parametrize("method", ["dpp-sample", "random"])
def test_seed_decides_draws(report: Callable[..., dict[str, Any]], method: str) -> None:
    def keeps(seed: int) -> list[list[int]]:
        found = report("--method", method, "--seed", seed, "--dry-run")
        assert found["seed"] == seed
        return [layer["keep"] for layer in found["layers"]]

    assert keeps(0) == keeps(0)
    assert len({str(keeps(seed)) for seed in range(4)}) > 1


def test_seed_largest(report: Callable[..., dict[str, Any]]) -> None:
    assert report("--seed", 2**64 - 1, "--method", "dpp-sample")["seed"] == 2**64 - 1


def test_max_rows(report: Callable[..., dict[str, Any]]) -> None:
    assert report("--max-rows", 32)["rows"] == 32
    assert report("--max-rows", 10**12, "--force")["rows"] == 64


def test_batch_size_changes_nothing_but_rounding(report: Callable[..., dict[str, Any]]) -> None:
    whole, cut = report("--dry-run"), report("--dry-run", "--batch-size", 7)
    assert [layer["keep"] for layer in whole["layers"]] == [layer["keep"] for layer in cut["layers"]]
    for one, other in zip(whole["layers"], cut["layers"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)


def test_options_are_reported(report: Callable[..., dict[str, Any]], calib: Path) -> None:
    options = report(
        "--layer", "fc1=0.25", "--layer", "fc*", "--skip", "fc2", "--round-to", 2, "--batch-size", 5, "--max-rows", 29
    )["options"]
    assert options == {
        "calib": str(calib), "keep": 0.5, "unit": "neuron", "method": "auto", "kernel": "rbf", "beta": "auto",
        "epsilon": 0.01, "refit": "affine", "layers": ["fc1=0.25", "fc*"], "skip": ["fc2"], "round_to": 2,
        "seed": 0, "provider": "cpu", "batch_size": 5, "max_rows": 29, "pattern": None, "mask": None,
        "memory": 2**31, "swaps": 0, "sensitivity": True, "sweeps": 0, "polish": 0, "target_parameters": None,
        "target_bytes": None, "target_macs": None, "target_discrepancy": None, "allocation": "auto",
        "apply": None, "storage": "dense", "values": "same", "data": None, "labels": None,
        "max_discrepancy": None, "max_accuracy_drop": None,
        "min_agreement": None, "max_size_ratio": None, "min_speedup": None, "baseline": None,
    }  # fmt: skip


def test_output_of_integers_is_compared_by_agreement(onnxdpp: Run, tmp_path: Path, calib: Path) -> None:
    text = """
        net (float[N, 8] x) => (int64[N] label, float[N, 3] y) {
            [fc1] a = Gemm(x, w1, b1)
            p = Relu(a)
            [fc2] y = Gemm(p, w2, b2)
            label = ArgMax<axis=1, keepdims=0>(y)
        }"""
    net = mlp(text, w2=(16, 3), b2=(3,))
    path = stored(net, tmp_path / "net.onnx")
    outcome = onnxdpp("prune", path, "--calib", calib, "--keep", 0.9, "--provider", "cpu")
    assert outcome.code == 0
    assert re.search(r"^output +relative L2 +max abs +cosine +agreement$", outcome.out, re.MULTILINE)
    assert re.search(r"^label +- +- +- +[01]", outcome.out, re.MULTILINE)
    assert re.search(r"^y +\S+ +\S+ +\S+ +[01]", outcome.out, re.MULTILINE)


# inspect


def test_inspect_tables(onnxdpp: Run, model: Path) -> None:
    before = contents(model.parent)
    outcome = onnxdpp("inspect", model)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        f"387 parameters (387 not zero), {model.stat().st_size:,} bytes, opset 17, exported by an unknown tool",
        "",
        "layer (--unit neuron)   neurons   consumer outputs",
        "──────────────────────────────────────────────────",
        "fc1                          16                 12",
        "fc2                          12                  3",
        "",
        "cannot be pruned (--unit neuron)   reason                         ",
        "──────────────────────────────────────────────────────────────────",
        "fc3                                its value 'y' is a graph output",
        "",
        "layer (--unit edge)   inputs   outputs",
        "──────────────────────────────────────",
        "fc1                        8        16",
        "fc2                       16        12",
        "fc3                       12         3",
    ]
    assert contents(model.parent) == before


def test_inspect_json(onnxdpp: Run, model: Path) -> None:
    outcome = onnxdpp("inspect", "--json", model)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    jsonschema.validate(found, schema("inspection"))
    assert found["layers"][0] == {
        "name": "fc1",
        "operator": "Gemm",
        "unit": "neuron",
        "width": 16,
        "outputs": 12,
        "producers": ["fc1"],
        "consumers": ["fc2"],
        "verdict": None,
        "expected_size": None,
    }
    assert found["refusals"] == [{"name": "fc3", "unit": "neuron", "reason": "its value 'y' is a graph output"}]


def test_inspect_names_layers_that_fail_their_test(onnxdpp: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [Verdict(name, 0.5, 0.0, False) for name in ("fc1", "fc2")]
    monkeypatch.setattr("onnxdpp.inspecting.check_layers", lambda *_: failed)
    outcome = onnxdpp("inspect", model, "--verify", "--provider", "cpu")
    assert outcome.code == 1
    assert outcome.err == (
        "error: Layers that fail their test: 'fc1', 'fc2'. That is a bug in onnxdpp; leave them out with --skip.\n"
    )


def test_inspect_of_nothing_to_prune_is_no_error(onnxdpp: Run, tmp_path: Path) -> None:
    path = stored(mlp("g (float[N] x) => (float[N] y) { y = Relu(x) }"), tmp_path / "a.onnx")
    assert onnxdpp("inspect", path).code == 0
    assert json.loads(onnxdpp("inspect", path, "--json").out)["layers"] == []


# Help and mistakes of use


def test_version(onnxdpp: Run) -> None:
    assert onnxdpp("--version") == Outcome(0, f"onnxdpp, version {version('onnxdpp')}\n", "")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["prune"], ["inspect"], ["evaluate"]])
def test_help(onnxdpp: Run, command: list[str], flag: str) -> None:
    outcome = onnxdpp(*command, flag)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: onnxdpp")
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_help_names_every_option_of_the_issue(onnxdpp: Run) -> None:
    out = onnxdpp("prune", "-h").out
    for option in (
        "--calib DATA", "--keep F", "-o, --output OUT", "--unit neuron|edge", "--kernel rbf|linear|consumer",
        "--beta auto|B", "--method auto|dpp|dpp-sample|obs|omp|wanda|fluctuation|importance|random",
        "--epsilon E", "--refit affine|linear|none", "--seed N",
        "--layer PATTERN[=KEEP]", "--skip PATTERN", "--round-to N", "--provider auto|cpu|cuda", "--batch-size N",
        "--max-rows N", "--report FILE.json", "--json", "--quiet", "--force", "--dry-run", "--debug",
        "--data DATA", "--labels NAME", "--max-discrepancy D", "--max-accuracy-drop F", "--min-agreement F",
        "--max-size-ratio F", "--min-speedup F", "--baseline REPORT", "--keep-going", "--summary",
    ):  # fmt: skip
        assert f"{option}\n" in out or f"{option} " in out, option


def test_no_arguments_show_the_help(onnxdpp: Run) -> None:
    outcome = onnxdpp()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: onnxdpp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shrink"], "No such command 'shrink'."),
        (["inspect"], "Missing argument 'MODEL'. Try 'onnxdpp inspect --help'."),
        (["inspect", "a", "b"], "Got unexpected extra argument (b)"),
        (
            ["prune", "a", "--calib", "b"],
            "Missing option '--keep' (or a '--target-...'; for neurons '--apply'; for edges '--pattern'). "
            "Try 'onnxdpp prune --help'.",
        ),
        (["prune", "a", "--keep", "1"], "Missing option '--calib'."),
        (["prune", "a", "--calib"], "Option '--calib' requires an argument."),
        (["prune", "a", "--calib", "b", "--kee", "1"], "No such option '--kee'."),
        (
            ["prune", "a", "--calib", "b", "--keep", "70%"],
            "Invalid value for '--keep': '70%' is neither 'auto' nor a number.",
        ),
        (["prune", "a", "--calib", "b", "--keep", "0.7.1"], "'0.7.1' is neither 'auto' nor a number."),
        (["prune", "a", "--calib", "b", "--keep", "1", "--beta", "x"], "'x' is neither 'auto' nor a number."),
        (["prune", "a", "--calib", "b", "--keep", "1", "--seed", "x"], "'x' is not a valid integer."),
        (["prune", "a", "--calib", "b", "--keep", "1", "--seed", "1.5"], "'1.5' is not a valid integer."),
        (["prune", "a", "--calib", "", "--keep", "1"], "--calib is empty."),
        (["prune", "a", "--calib", "b", "--keep", "1", "-o", "-"], "OUT is '-'"),
        (["prune", "a", "--calib", "b", "--keep", "1", "--json=1"], "Option '--json' does not take a value."),
    ],
)
def test_mistake_of_use_is_one_line(onnxdpp: Run, arguments: list[str], message: str) -> None:
    assert message in refusal(onnxdpp(*arguments), 2)


# The same bytes


@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("method", ["dpp", "dpp-sample"])
def test_same_bytes_whatever_the_surroundings(
    onnxdpp: Run, model: Path, calib: Path, tmp_path: Path, unit: str, method: str
) -> None:
    arguments = ["prune", model, "--calib", calib, "--keep", "0.4", "--unit", unit, "--method", method, "--quiet"]
    surroundings = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": None}

    def out(name: str) -> list[object]:
        return ["-o", tmp_path / f"{name}.onnx", "--report", tmp_path / f"{name}.json"]

    def written(name: str) -> tuple[bytes, Any]:
        report = json.loads((tmp_path / f"{name}.json").read_text())
        return (tmp_path / f"{name}.onnx").read_bytes(), without_seconds(report)

    assert onnxdpp(*arguments, *out("here")).code == 0
    assert execute(*arguments, *out("there"), env=surroundings, cwd="/") == Outcome(0, "", "")
    assert written("here") == written("there")


@pytest.mark.parametrize("threads", ["1", "2"])
def test_same_bytes_of_digits_in_another_process(onnxdpp: Run, tmp_path: Path, threads: str) -> None:
    """Wide enough that BLAS would split its sums over threads."""
    arguments = ["prune", DIGITS / "model.onnx", "--calib", DIGITS / "calib.npz", "--keep", "0.1"]
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert onnxdpp(*arguments, "-o", a).code == 0
    assert execute(*arguments, "-o", b, "--quiet", env={"OMP_NUM_THREADS": threads}).code == 0
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("command", ["prune", "evaluate", "compare"])
def test_same_report_on_any_number_of_threads(onnxdpp: Run, tmp_path: Path, command: str) -> None:
    """Of 256 rows of 400 outputs at a time, whose sums BLAS would split, too."""
    text = "wide (float[N, 8] x) => (float[N, 400] y) { [fc1] a = Gemm(x, w1, b1) p = Relu(a) y = Gemm(p, w2, b2) }"
    net, other = (
        stored(mlp(text, w2=(16, 400), b2=np.full(400, bias, np.float32)), tmp_path / f"{bias}.onnx") for bias in (0, 1)
    )
    np.savez(tmp_path / "rows.npz", x=data(512))
    np.savez(tmp_path / "others.npz", x=data(512, seed=2))
    calib, rows = ["--calib", tmp_path / "rows.npz"], ["--data", tmp_path / "others.npz"]
    arguments = {
        "prune": [net, *calib, *rows, "--keep", 0.5, "--dry-run"],
        "evaluate": [net, other, *rows, "--no-latency", "--no-memory"],
        "compare": [net, *calib, *rows, "--keep", 0.5, "--method", "dpp", "--repeat", 2],
    }[command]
    reports = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            outcome = onnxdpp(command, *arguments, "--provider", "cpu", "--json")
        assert outcome.code == 0
        reports.append(without_seconds(json.loads(outcome.out)))
    assert reports[0] == reports[1]


def test_same_bytes_run_after_run_in_one_process(prune: Run, tmp_path: Path) -> None:
    for name in "ab":
        assert prune("--method", "dpp-sample", "-o", tmp_path / f"{name}.onnx").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(part) for key, part in value.items() if key != "seconds"}
    return [without_seconds(part) for part in value] if isinstance(value, list) else value


# Processes and terminals


def test_python_dash_m_and_the_script_say_the_same() -> None:
    expected = f"onnxdpp, version {version('onnxdpp')}\n"
    assert execute("--version") == Outcome(0, expected, "")
    script = Path(sys.executable).with_name("onnxdpp.exe" if sys.platform == "win32" else "onnxdpp")
    assert subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout == expected


def test_help_loads_neither_onnxruntime_nor_scipy() -> None:
    code = (
        "import sys, onnxdpp.__main__ as m; m._run(['prune', '-h']); print({'onnxruntime', 'scipy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


class Terminal:
    """A pseudo-terminal of a given size for stdout and stderr."""

    def __init__(self, columns: int, term: str = "xterm") -> None:
        self.columns, self.term = columns, term

    def run(self, *arguments: object) -> tuple[int, str]:
        import fcntl
        import pty
        import termios

        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, self.columns, 0, 0))
        env = {"TERM": self.term, "COLUMNS": None, "NO_COLOR": None}
        process = spawn(*arguments, env=env, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what Linux says when the last writer has gone
            while block := os.read(ours, 65536):
                shown += block
        os.close(ours)
        return process.wait(timeout=60), shown.decode().replace("\r\n", "\n")


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


@needs_terminal
@pytest.mark.parametrize("columns", [20, 80])
def test_terminal_shows_every_number(model: Path, calib: Path, columns: int) -> None:
    code, shown = Terminal(columns).run("prune", model, "--calib", calib, "--keep", "0.5", "--dry-run")
    assert code == 0
    assert re.search(r"fc1 +16 +8 +[a-z, ()]+ +[\d.]+ +[\d.]+ +\d+\.\d\d\n", plain(shown))
    assert re.search(r"parameters +387 +147 +0\.380\n", plain(shown))
    assert "verify" in shown  # the bar


@needs_terminal
def test_terminal_dumb_gets_no_escape_sequences(model: Path, calib: Path) -> None:
    code, shown = Terminal(80, "dumb").run("prune", model, "--calib", calib, "--keep", "0.5", "--dry-run")
    assert code == 0
    assert "\x1b" not in shown
    assert "fc1" in shown


def test_pipe_gets_no_bar(model: Path, calib: Path) -> None:
    outcome = execute("prune", model, "--calib", calib, "--keep", "0.5", "--dry-run", "--provider", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert "\x1b" not in outcome.out


@pytest.mark.parametrize("command", ["compare", "evaluate"])
def test_weights_in_a_file_of_their_own_are_not_overwritten(
    onnxdpp: Run, calib: Path, model: Path, tmp_path: Path, command: str
) -> None:
    source, weights = tmp_path / "ext.onnx", tmp_path / "ext.bin"
    onnx.save(onnx.load(model), source, save_as_external_data=True, location=weights.name, size_threshold=0)
    before = weights.read_bytes()
    words = {
        "compare": [source, "--calib", calib, "--keep", "0.5", "--method", "importance", "--csv", weights],
        "evaluate": [source, source, "--data", calib, "--no-latency", "--no-memory", "--report", weights],
    }[command]
    assert onnxdpp(command, *words, "--force").code == 2
    assert weights.read_bytes() == before


def test_missed_gate_leaves_its_baseline_alone(prune: Run, tmp_path: Path) -> None:
    base = tmp_path / "base.json"
    assert prune("--dry-run", "--report", base).code == 0
    assert prune("--dry-run", "--method", "random", "--baseline", base, "--report", base, "--force").code == 2


def test_batches_without_a_row_held_out_do_not_lose_agreement(prune: Run) -> None:
    assert prune("--dry-run", "--batch-size", 3, "--min-agreement", 0.01).code == 0


def test_inspecting_a_model_without_weights_says_so(onnxdpp: Run, tmp_path: Path) -> None:
    path = stored(mlp("g (float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }"), tmp_path / "relu.onnx")
    assert "Nothing can be pruned: its graph has no Gemm, MatMul or Conv." in onnxdpp("inspect", path).out
