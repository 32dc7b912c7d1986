"""Gates: exactly at the limit, just beside it, with nothing to judge; on both commands, in every output format."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoking import Outcome, data, invoke, mlp, refusal, stored

import onnxdpp as package
from onnxdpp.errors import UsageError
from onnxdpp.gates import Limits, figures, shown, told, verdicts
from onnxdpp.report import schema

Run = Callable[..., Outcome]

REPORT: dict[str, Any] = {
    "model": {"before": {"bytes": 1000}, "after": {"bytes": 700}},
    "discrepancy": {
        "y": {"relative_l2": 0.1, "max_abs": 1.0, "cosine": 0.9, "agreement": 0.7},
        "z": {"relative_l2": 0.3, "max_abs": 1.0, "cosine": 0.9, "agreement": None},
        "label": {"agreement": 0.9},
    },
    "accuracy": {"y": {"before": 0.93, "after": 0.83, "lost": 13, "gained": 3, "rows": 100}},
    "latency": [{"rows": 1, "before": 3.0, "after": 1.0}, {"rows": 64, "before": 3.0, "after": 2.0}],
}
GATES = {  # value in REPORT, and a limit just beyond it
    "max_discrepancy": (0.3, math.nextafter(0.3, 0)),
    "max_accuracy_drop": (0.1, math.nextafter(0.1, 0)),
    "min_agreement": (0.7, math.nextafter(0.7, 1)),
    "max_size_ratio": (0.7, math.nextafter(0.7, 0)),
    "min_speedup": (1.5, math.nextafter(1.5, 2)),
}


def verdict(report: Any, **limits: Any) -> dict[str, Any]:
    (only,) = verdicts(report, Limits(**limits))
    return only


# Judging


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_passes_at_its_limit_and_not_beyond(gate: str) -> None:
    value, beyond = GATES[gate]
    assert verdict(REPORT, **{gate: value}) == {
        "gate": gate.replace("_", "-"),
        "value": value,
        "limit": value,
        "passed": True,
    }
    missed = verdict(REPORT, **{gate: beyond})
    assert (missed["value"], missed["limit"], missed["passed"]) == (value, beyond, False)


@given(st.floats(0, 2), st.floats(0, 2))
def test_gates_on_discrepancy_and_speed_mirror(value: float, limit: float) -> None:
    report = {**REPORT, "discrepancy": {"y": {"relative_l2": value, "agreement": None}}}
    assert verdict(report, max_discrepancy=limit)["passed"] == (value <= limit)


@given(st.integers(1, 10**6), st.data())
def test_drop_of_accuracy_is_compared_as_a_fraction_of_counts(rows: int, draw: st.DataObject) -> None:
    """At limits such as 0.03, the difference of two accuracies would be off by its last bit."""
    lost = draw.draw(st.integers(0, rows))
    report = {**REPORT, "accuracy": {"y": {"after": 0.5, "lost": lost, "gained": 0, "rows": rows}}}
    assert verdict(report, max_accuracy_drop=lost / rows)["passed"]


def test_gates_look_at_the_worst() -> None:
    found = figures(REPORT)
    assert (found.discrepancy, found.agreement, found.speedup) == (0.3, 0.7, 1.5)


def test_gates_look_at_rows_that_were_not_fitted_where_there_are_some() -> None:
    tried = {"discrepancy": {"y": {"relative_l2": 0.4, "agreement": 0.2}}, "accuracy": {}, "latency": []}
    found = figures({**REPORT, "evaluation": tried})
    assert (found.discrepancy, found.agreement, found.accuracy, found.speedup) == (0.4, 0.2, None, None)
    assert figures({**REPORT, "evaluation": None}) == figures(REPORT)


@pytest.mark.parametrize("gate", ["max_discrepancy", "max_accuracy_drop", "min_agreement", "min_speedup"])
def test_what_is_missing_does_not_pass(gate: str) -> None:
    bare = {**REPORT, "discrepancy": {}, "accuracy": {}, "latency": []}
    loosest = {"max_discrepancy": 1e300, "max_accuracy_drop": 1.0, "min_agreement": 0.0, "min_speedup": 1e-300}
    assert verdict(bare, **{gate: loosest[gate]}) == {
        "gate": gate.replace("_", "-"),
        "value": None,
        "limit": loosest[gate],
        "passed": False,
    }


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_number_does_not_pass(value: float | None) -> None:
    report = {**REPORT, "discrepancy": {"y": {"relative_l2": value, "agreement": None}, "z": {"relative_l2": 0.0}}}
    found = verdict(report, max_discrepancy=1e300)
    assert (found["value"], found["passed"]) == (None, False)


# An earlier report


def test_a_report_is_no_worse_than_itself() -> None:
    found = verdicts(REPORT, Limits(baseline=REPORT))
    assert [each["gate"] for each in found] == [
        "baseline max-discrepancy",
        "baseline min-accuracy",
        "baseline min-agreement",
        "baseline max-size-ratio",
    ]
    assert all(each["passed"] for each in found)


@pytest.mark.parametrize(
    ("path", "value", "gate"),
    [
        (("discrepancy", "z", "relative_l2"), 0.3031, "baseline max-discrepancy"),
        (("accuracy", "y", "after"), 0.829, "baseline min-accuracy"),
        (("discrepancy", "y", "agreement"), 0.69, "baseline min-agreement"),
        (("model", "after", "bytes"), 701, "baseline max-size-ratio"),
    ],
)
def test_what_has_become_worse_is_told(path: tuple[str, ...], value: float, gate: str) -> None:
    worse = json.loads(json.dumps(REPORT))
    place = worse
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert [each["gate"] for each in verdicts(worse, Limits(baseline=REPORT)) if not each["passed"]] == [gate]


def test_a_figure_that_only_the_earlier_report_has_is_missing() -> None:
    found = verdicts({**REPORT, "accuracy": {}}, Limits(baseline=REPORT))
    assert [(each["gate"], each["value"]) for each in found if not each["passed"]] == [("baseline min-accuracy", None)]
    assert all(each["passed"] for each in verdicts(REPORT, Limits(baseline={**REPORT, "accuracy": {}})))


@pytest.mark.parametrize("report", [{}, {"model": 3}, {"model": {"before": {"bytes": 0}, "after": {"bytes": 1}}}])
def test_a_baseline_that_is_no_report(report: Any) -> None:
    with pytest.raises(UsageError, match="The baseline is no report of onnxdpp prune or evaluate"):
        Limits(baseline=report)


# Limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_discrepancy": -0.1}, "max_discrepancy is -0.1; it must be a number 0 or above"),
        ({"max_discrepancy": math.nan}, "max_discrepancy is nan"),
        ({"max_discrepancy": math.inf}, "max_discrepancy is inf"),
        ({"max_accuracy_drop": 2}, "max_accuracy_drop is 2; it must be a number from -1 to 1"),
        ({"min_agreement": 99}, "min_agreement is 99; it must be a number from 0 to 1"),
        ({"max_size_ratio": 0}, "max_size_ratio is 0; it must be a number above 0"),
        ({"min_speedup": "2"}, "min_speedup is '2'"),
        ({"min_speedup": True}, "min_speedup is True"),
    ],
)
def test_limits_that_cannot_be(limits: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Limits(**limits)


def test_verdicts_are_told_with_digits_enough() -> None:
    near = verdict(REPORT, max_discrepancy=math.nextafter(0.3, 0))
    assert told(near) == "Gate max-discrepancy is missed: 0.3 is above 0.2999999999999999."
    assert told(verdict(REPORT, min_speedup=2.0)) == "Gate min-speedup is missed: 1.5 is below 2."
    missing = verdict({**REPORT, "latency": []}, min_speedup=2.0)
    assert told(missing) == "Gate min-speedup is missed: there is no figure to hold against 2."


@given(st.floats(0, 1), st.floats(0, 1))
def test_value_and_limit_look_different_where_they_are(value: float, limit: float) -> None:
    one, other = shown({"value": value, "limit": limit})
    assert (one == other) == (value == limit)


# The commands


@pytest.fixture
def onnxdpp(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return lambda *arguments: invoke(capfd, *arguments)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The network 8-16-12-3, and 64 labelled rows; calibration rows beside them."""
    np.savez(tmp_path / "calib.npz", x=data())
    rows = data(seed=2)
    np.savez(tmp_path / "test.npz", x=rows, labels=rows[:, :3].argmax(1))
    return stored(mlp(), tmp_path / "net.onnx"), tmp_path / "test.npz"


@pytest.fixture
def prune(onnxdpp: Run, files: tuple[Path, Path]) -> Run:
    """`onnxdpp prune MODEL --calib DATA --keep 0.5 --method dpp --provider cpu` and what else is given."""
    calib = files[0].with_name("calib.npz")
    fixed = ("--calib", calib, "--keep", 0.5, "--method", "dpp", "--provider", "cpu")
    return lambda *more: onnxdpp("prune", files[0], *fixed, *more)


@pytest.fixture
def evaluate(onnxdpp: Run, files: tuple[Path, Path]) -> Run:
    """`onnxdpp evaluate` of the network and one that keeps half."""
    package.prune(files[0], {"x": data()}, keep=0.5, method="dpp", provider="cpu").save(files[0].with_name("half.onnx"))
    fixed = ("--data", files[1], "--labels", "labels", "--provider", "cpu", "--no-latency", "--no-memory")
    return lambda *more: onnxdpp("evaluate", files[0], files[0].with_name("half.onnx"), *fixed, *more)


FORMATS: list[list[str]] = [[], ["--json"], ["--quiet"], ["--quiet", "--json"], ["--summary"]]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("command", ["evaluate", "prune"])
def test_code_and_message_are_the_same_in_every_format(
    request: pytest.FixtureRequest, command: str, form: list[str]
) -> None:
    run: Run = request.getfixturevalue(command)
    missed = run("--max-size-ratio", 0.01, "--min-agreement", 0, *form)
    assert missed.code == 1
    assert missed.err.startswith("error: Gate max-size-ratio is missed: 0.")
    assert missed.err.endswith(" is above 0.01.\n")
    assert missed.err.count("\n") == 1
    passed = run("--max-size-ratio", 1, "--min-agreement", 0, *form, *["--force"] * (command == "prune"))
    assert (passed.code, passed.err) == (0, "")


@pytest.mark.parametrize("command", ["evaluate", "prune"])
def test_limits_at_what_a_run_says_pass_in_the_next(request: pytest.FixtureRequest, command: str) -> None:
    run: Run = request.getfixturevalue(command)
    loose = {
        "max-discrepancy": 1e9, "max-accuracy-drop": 1, "min-agreement": 0, "max-size-ratio": 1e9,
    }  # fmt: skip
    more = ["--data", request.getfixturevalue("files")[1], "--labels", "labels"] if command == "prune" else []
    more += ["--dry-run"] if command == "prune" else []
    arguments = [part for gate, limit in loose.items() for part in (f"--{gate}", limit)]
    first = json.loads(run(*more, "--json", *arguments).out)
    jsonschema.validate(first, schema("report" if command == "prune" else "evaluation"))
    assert [each["gate"] for each in first["gates"]] == list(loose)
    exact = [part for each in first["gates"] for part in (f"--{each['gate']}", repr(each["value"]))]
    assert run(*more, "--quiet", *exact) == Outcome(0, "", "")
    for each in first["gates"]:
        beyond = math.nextafter(each["value"], -math.inf if each["gate"].startswith("max") else math.inf)
        if -1 <= beyond <= 1:
            assert run(*more, "--quiet", f"--{each['gate']}", repr(beyond)).code == 1, each


def test_missed_gate_writes_no_model_but_the_report(prune: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = prune("--max-size-ratio", 0.01, "--report", tmp_path / "r.json")
    assert outcome.code == 1
    assert "gates missed: nothing written (" in outcome.out
    assert not (tmp_path / "net.pruned.onnx").exists()
    assert [each["passed"] for each in json.loads((tmp_path / "r.json").read_text())["gates"]] == [False]


def test_keep_going_writes_the_model_all_the_same(prune: Run, tmp_path: Path) -> None:
    outcome = prune("--max-size-ratio", 0.01, "--keep-going")
    assert outcome.code == 1
    assert f"wrote {tmp_path / 'net.pruned.onnx'} (" in outcome.out
    assert (tmp_path / "net.pruned.onnx").is_file()


def test_missed_gate_leaves_an_older_model(prune: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pruned.onnx").write_text("old")
    assert prune("--max-size-ratio", 0.01, "--force").code == 1
    assert (tmp_path / "net.pruned.onnx").read_text() == "old"


@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("method", ["auto", "dpp", "random"])
def test_gates_without_data_look_at_rows_held_out(prune: Run, unit: str, method: str) -> None:
    arguments = ["--dry-run", "--json", "--unit", unit, "--method", method]
    found = json.loads(prune(*arguments, "--max-discrepancy", 1e9).out)
    assert found["evaluation"]["held_out"] is True
    assert found["evaluation"]["rows"] == 64 // 5
    assert found["gates"][0]["value"] == found["evaluation"]["discrepancy"]["y"]["relative_l2"]
    assert found["gates"][0]["value"] > found["discrepancy"]["y"]["relative_l2"]
    assert json.loads(prune(*arguments).out)["evaluation"] is None


@pytest.mark.parametrize("options", [{"method": "obs"}, {"method": "auto"}, {"sweeps": 2, "polish": 2}])
def test_rows_of_a_gate_have_no_say_in_the_model(files: tuple[Path, Path], options: dict[str, Any]) -> None:
    """Others in their place give the same: they are not fitted, and nothing is chosen by them."""
    one, other = data(), data()
    other[4::5] = data(seed=9)[4::5]
    models = [
        package.prune(files[0], {"x": rows}, keep=0.5, provider="cpu", max_discrepancy=1e9, **options).model
        for rows in (one, other)
    ]
    assert models[0] == models[1]


def test_data_are_tried_with_and_without_gates(prune: Run, files: tuple[Path, Path]) -> None:
    found = json.loads(prune("--dry-run", "--json", "--data", files[1], "--labels", "labels").out)
    jsonschema.validate(found, schema("report"))
    assert found["gates"] == []
    assert (found["evaluation"]["held_out"], found["evaluation"]["rows"]) == (False, 64)
    assert found["evaluation"]["accuracy"]["y"]["rows"] == 64
    # the same figures as `evaluate` gives
    result = package.prune(files[0], str(files[0].with_name("calib.npz")), keep=0.5, method="dpp", provider="cpu")
    again = package.evaluate(
        files[0], result.model, files[1], labels="labels", provider="cpu", latency=False, memory=False
    )
    assert found["evaluation"]["discrepancy"] == again["discrepancy"]
    assert found["evaluation"]["accuracy"] == again["accuracy"]


def test_notices_of_data_are_told(prune: Run) -> None:
    found = json.loads(prune("--dry-run", "--json", "--data", "random:8", "--max-discrepancy", 1e9).out)
    assert found["notices"] == ["The data are random: sizes and latency are real, answers are not."]


def test_data_do_not_change_the_model(prune: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    prune("-o", tmp_path / "a.onnx")
    prune("-o", tmp_path / "b.onnx", "--data", files[1], "--labels", "labels", "--max-discrepancy", 1e9)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_baseline_is_a_report_of_either_command(prune: Run, evaluate: Run, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert evaluate("--quiet", "--report", a).code == 0
    assert evaluate("--quiet", "--baseline", a, "--report", b).code == 0
    assert len(json.loads(b.read_text())["gates"]) == 4
    test = tmp_path / "test.npz"
    same = ["--quiet", "--dry-run", "--data", test, "--labels", "labels"]
    assert prune(*same, "--baseline", a, "--report", tmp_path / "c.json").code == 0
    assert evaluate("--quiet", "--baseline", tmp_path / "c.json").code == 0
    assert prune("--quiet", "--keep", 0.1, "--baseline", tmp_path / "c.json").code == 1


def test_gate_on_speed_is_measured(prune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdpp.latency.SECONDS", 0.0)
    found = json.loads(prune("--json", "--min-speedup", 1e-6).out)
    assert found["gates"][0]["value"] == min(part["before"] / part["after"] for part in found["evaluation"]["latency"])
    assert found["evaluation"]["held_out"] is False


def test_gate_on_speed_alone_tries_calibration_rows_and_says_so(
    prune: Run, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdpp.latency.SECONDS", 0.0)
    page = files[0].with_name("page.html")
    outcome = prune("--dry-run", "--min-speedup", 1e-6, "--report", files[0].with_name("r.json"), "--html", page)
    assert "other data" not in outcome.out
    assert outcome.out.count("relative L2") == 1
    text = page.read_text(encoding="utf-8")
    assert "not fitted" not in text
    assert "Of runs on calibration rows" in text
    found = json.loads(files[0].with_name("r.json").read_text())
    jsonschema.validate(found, schema("report"))
    tried = found["evaluation"]
    assert (tried["fitted"], tried["held_out"], tried["rows"]) == (True, False, 64)
    assert tried["discrepancy"] == found["discrepancy"]


def test_rows_that_are_tried_are_told_apart(prune: Run, files: tuple[Path, Path]) -> None:
    for more, held_out in ((["--data", files[1], "--labels", "labels"], False), (["--max-discrepancy", 9], True)):
        tried = json.loads(prune("--dry-run", "--json", *more).out)["evaluation"]
        assert (tried["fitted"], tried["held_out"]) == (False, held_out)


def test_usage_of_gates(prune: Run, evaluate: Run, onnxdpp: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    assert "name these by --data and --labels" in refusal(prune("--max-accuracy-drop", 0.1), 2)
    assert "name these by --data and --labels" in refusal(prune("--labels", "labels"), 2)
    assert "needs labels" in refusal(prune("--max-accuracy-drop", 0.1, "--data", "random:8"), 2)
    assert "needs the latency" in refusal(evaluate("--min-speedup", 1), 2)
    assert "max_size_ratio is 0.0" in refusal(evaluate("--max-size-ratio", 0), 2)
    assert "cannot be read" in refusal(evaluate("--baseline", tmp_path / "none.json"), 2)
    assert "no report of onnxdpp" in refusal(evaluate("--baseline", _written(tmp_path / "x.json", "{}")), 2)
    assert "both go to stdout" in refusal(evaluate("--summary", "--json"), 2)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# The summary


def test_summary_goes_where_github_wants_it(evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = _written(tmp_path / "summary.md", "before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(target))
    outcome = evaluate("--summary", "--max-size-ratio", 0.01)
    assert outcome.code == 1
    assert outcome.out.startswith("model ")
    text = target.read_text()
    assert text.startswith("before\n### onnxdpp: 1 of 1 gates missed\n\n| gate | value | limit | verdict |\n")
    assert "\n| max-size-ratio | 0." in text
    assert text.endswith("\n\n")
    assert json.loads(evaluate("--summary", "--json").out)
    assert target.read_text().count("### onnxdpp") == 2


def test_summary_on_stdout_elsewhere(evaluate: Run) -> None:
    outcome = evaluate("--summary", "--max-discrepancy", 1e9)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("### onnxdpp: all gates passed\n")
    assert "| parameters | 387 | 147 | 0.380 |" in outcome.out


def test_summary_that_cannot_be_written(evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert "Cannot write the summary" in refusal(evaluate("--summary"), 5)


def test_earlier_report_with_an_output_without_entries_keeps_its_limit(files: tuple[Path, Path]) -> None:
    """As reports once told of it."""
    old = package.prune(files[0], {"x": data()}, keep=0.5, provider="cpu").report
    old["discrepancy"] = {"y": {**old["discrepancy"]["y"], "relative_l2": 1e-6}, "found": {"agreement": None}}
    found = package.prune(files[0], {"x": data()}, keep=0.5, provider="cpu", baseline=old).report
    (gate,) = (gate for gate in found["gates"] if gate["gate"] == "baseline max-discrepancy")
    assert not gate["passed"]
