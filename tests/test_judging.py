"""How far a model is from the original, on rows held out and on no others, and which of several is the best."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invoking import mlp
from models import Array, Weight, graph_of, model, normal, run
from onnx import ModelProto
from scipy.special import rel_entr, softmax

import onnxdpp
from onnxdpp import judging
from onnxdpp.errors import MachineError
from onnxdpp.evaluation import compare
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.judging import BATCH, CLOSE, Judge, Judgement, best_of
from onnxdpp.report import schema, to_json

X = normal(60, 4)
W = normal(4, 3, seed=5)


def judged(
    original: ModelProto, candidate: ModelProto, feeds: Any, *, mask: str | None = None, batch_size: int | None = None
) -> Judgement | None:
    graph = graph_of(original)
    batches = open_batches(feeds, input_specs(original), batch_size=batch_size)
    return Judge(graph, batches, "cpu", mask).judge(candidate)


def found(*arguments: Any, **options: Any) -> Judgement:
    judgement = judged(*arguments, **options)
    assert judgement is not None
    return judgement


def plain(body: str = "y = Gemm(x, W, b)", outputs: str = "float[N, 3] y", **weights: Weight) -> ModelProto:
    """From x to y, by a Gemm."""
    everything: dict[str, Weight] = {"W": W, "b": np.zeros(3, np.float32), **weights}
    read = {name: weight for name, weight in everything.items() if name in body}
    return model(f"g (float[N, 4] x) => ({outputs}) {{ {body} }}", **read)


SHIFTED = np.float32([0.5, -1, 0.25])


def held_out(x: Array) -> Array:
    return x[4::5]


def relative(old: Array, new: Array) -> float:
    old, new = old.astype(np.float64), new.astype(np.float64)
    return float(np.linalg.norm(new - old) / np.linalg.norm(old))


def divergence(old: Array, new: Array) -> float:
    return float(rel_entr(old.astype(np.float64), new.astype(np.float64)).sum(1).mean())


# Distances


def test_model_is_no_distance_from_itself() -> None:
    assert judged(mlp(), mlp(), {"x": normal(60, 8)}) == Judgement(0.0, 0.0)


@given(st.integers(5, 90), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_distance_is_relative_l2_and_divergence_of_softmax(rows: int, batch_size: int, seed: int) -> None:
    x, w, shift = (normal(*shape, seed=seed + shape[-1], dtype=np.float64) for shape in ((rows, 4), (4, 3), (3,)))
    text = "g (double[N, 4] x) => (double[N, 3] y) { c = MatMul(x, w)  y = Add(c, b) }"
    judgement = found(model(text, w=w, b=0 * shift), model(text, w=w, b=shift), {"x": x}, batch_size=batch_size)
    old, new = held_out(x) @ w, held_out(x) @ w + shift
    assert judgement.discrepancy == pytest.approx(relative(old, new), rel=1e-9)
    spread = divergence(softmax(old, axis=1), softmax(new, axis=1))
    assert judgement.divergence == pytest.approx(spread, rel=1e-6, abs=1e-12)


def test_rows_that_are_not_held_out_play_no_part() -> None:
    held = np.arange(60)[:, None] % 5 == 4
    first, second, third = (
        found(plain(), plain(b=SHIFTED), {"x": part})
        for part in (X, np.where(held, X, 9).astype(np.float32), np.where(held, 9, X).astype(np.float32))
    )
    assert first == second
    assert first.discrepancy != pytest.approx(third.discrepancy, rel=0.1)


def test_more_rows_than_one_run_takes() -> None:
    x = normal(5 * BATCH + 50, 4)
    old = held_out(x) @ W
    assert len(old) > BATCH
    judgement = found(plain(), plain(b=SHIFTED), {"x": x})
    assert judgement.discrepancy == pytest.approx(relative(old, old + SHIFTED), rel=1e-4)


@pytest.mark.parametrize("size", [1, 3, 5, 10])
def test_fixed_batches_are_judged_on_rows_held_out(size: int) -> None:
    text = f"g (float[{size}, 4] x) => (float[{size}, 3] y) {{ y = Gemm(x, W, b) }}"
    original, candidate = (model(text, W=W, b=b) for b in (np.zeros(3, np.float32), SHIFTED))
    old = held_out(X) @ W
    assert found(original, candidate, {"x": X}).discrepancy == pytest.approx(relative(old, old + SHIFTED), rel=1e-4)


TOKENS = (
    "g (float[{size}, 5, 4] x, int64[{size}, 5] mask) => (float[{size}, 5, 3] y) {{ c = MatMul(x, W) y = Add(c, b) }}"
)


@pytest.mark.parametrize("size", ["N", 6])
def test_padded_positions_are_not_looked_at(size: int | str) -> None:
    original, candidate = (model(TOKENS.format(size=size), W=W, b=b) for b in (np.zeros(3, np.float32), SHIFTED))
    x, mask = normal(60, 5, 4), (np.arange(5) < 1 + np.arange(60)[:, None] % 4).astype(np.int64)
    old = (held_out(x) @ W)[held_out(mask) != 0]
    judgement = found(original, candidate, {"x": x, "mask": mask}, mask="mask")
    assert judgement.discrepancy == pytest.approx(relative(old, old + SHIFTED), rel=1e-4)
    spread = divergence(softmax(old, axis=1), softmax(old + SHIFTED, axis=1))
    assert judgement.divergence == pytest.approx(spread, rel=1e-3)


@pytest.mark.parametrize(
    ("declared", "masked"), [("float[N, 5] y", True), ("float[N, T] y", False), ("float[M, 5] y", True)]
)
def test_padded_entries_of_one_number_for_each_position_are_not_looked_at(declared: str, masked: bool) -> None:
    """Unless the axes are declared otherwise: rows of scores may be as long as rows of tokens."""
    body = "c = MatMul(x, v)  d = Squeeze(c, last)  y = Add(d, b)"
    text = f"g (float[N, 5, 4] x, int64[N, 5] mask) => ({declared}) {{ {body} }}"
    original, candidate = (model(text, v=(4, 1), last=np.int64([-1]), b=b) for b in (np.float32(0), np.float32(1)))
    x, mask = normal(60, 5, 4), (np.arange(5) < 1 + np.arange(60)[:, None] % 4).astype(np.int64)
    (old,) = run(original, {"x": held_out(x), "mask": held_out(mask)})
    used = old[held_out(mask) != 0] if masked else old
    judgement = found(original, candidate, {"x": x, "mask": mask}, mask="mask")
    assert judgement.discrepancy == pytest.approx(relative(used, used + 1), rel=1e-4)


def test_rows_of_several_lengths() -> None:
    text = "g (float[N, T, 4] x) => (float[N, T, 3] y) { c = MatMul(x, W)  y = Add(c, b) }"
    original, candidate = (model(text, W=W, b=b) for b in (np.zeros(3, np.float32), SHIFTED))
    parts = [normal(7, 2, 4), normal(8, 3, 4, seed=2)]
    old = np.concatenate([parts[0][4], parts[1][2], parts[1][7]]) @ W
    judgement = found(original, candidate, [{"x": part} for part in parts])
    assert judgement.discrepancy == pytest.approx(relative(old, old + SHIFTED), rel=1e-4)
    assert judgement.divergence is None


def test_probabilities_are_compared_as_they_are() -> None:
    body = "l = Gemm(x, W, b)  y = Softmax(l)"
    old, new = softmax(held_out(X) @ W, axis=1), softmax(held_out(X) @ W + SHIFTED, axis=1)
    judgement = found(plain(body), plain(body, b=SHIFTED), {"x": X})
    assert judgement.divergence == pytest.approx(divergence(old, new), rel=1e-3)


def test_positive_scores_are_no_probabilities() -> None:
    body = "l = Gemm(x, W, b)  y = Abs(l)"
    old, new = (softmax(np.abs(held_out(X) @ W + shift), axis=1) for shift in (0, SHIFTED))
    judgement = found(plain(body), plain(body, b=SHIFTED), {"x": X})
    assert judgement.divergence == pytest.approx(divergence(old, new), rel=1e-3)


def test_probabilities_that_vanish_diverge_finitely() -> None:
    body = "l = Gemm(x, W, b)  y = Softmax(l)"
    judgement = found(plain(body), plain(body, b=np.float32([0, 0, -500])), {"x": X})
    assert judgement.divergence is not None
    assert 1 < judgement.divergence < np.inf


def test_worst_output_counts() -> None:
    body, outputs = "y = Gemm(x, W, b)  z = MatMul(x, V)", "float[N, 3] y, float[N, 2] z"
    v = normal(4, 2, seed=6)
    first, second = plain(body, outputs, V=v), plain(body, outputs, V=np.float32(1.5) * v, b=np.float32([0.01, 0, 0]))
    assert found(first, second, {"x": X}).discrepancy == pytest.approx(0.5, rel=1e-4)


def test_output_that_is_zero_in_the_original_alone_is_infinitely_far() -> None:
    """Then the others tell models apart."""
    body, outputs = "y = Gemm(x, W, b)  l = MatMul(x, W)  z = Mul(l, s)", "float[N, 3] y, float[N, 3] z"
    zero, tiny = np.float32([0]), np.float32([1e-9])
    first = plain(body, outputs, s=zero)
    assert judged(first, first, {"x": X}) == Judgement(0.0, 0.0)
    still, near, far = (
        found(first, plain(body, outputs, s=scale, b=shift * SHIFTED), {"x": X})
        for scale, shift in ((zero, np.float32(1)), (tiny, np.float32(0.5)), (tiny, np.float32(1)))
    )
    assert np.isfinite(still.discrepancy)
    assert (near.discrepancy, far.discrepancy) == (np.inf, np.inf)
    assert near.rest == pytest.approx(far.rest / 2, rel=1e-4)
    assert far.rest == pytest.approx(still.discrepancy, rel=1e-9)
    broken = found(first, plain(body, outputs, s=zero, b=np.float32([np.nan, 0, 0])), {"x": X})
    assert best_of([broken, far, near]) == 2
    assert best_of([broken, near, far, still]) == 3


def test_distance_is_that_of_the_whole_comparison() -> None:
    """As `evaluation.compare` finds it on the same rows."""
    body, outputs = "y = Gemm(x, W, b)  l = MatMul(x, W)  z = Mul(l, s)", "float[N, 3] y, float[N, 3] z"
    zero = np.float32([0])
    for scale, b in ((zero, SHIFTED), (np.float32([1e-9]), 0 * SHIFTED), (zero, 0 * SHIFTED)):
        first, second = plain(body, outputs, s=zero), plain(body, outputs, s=scale, b=b)
        batches = open_batches({"x": held_out(X)}, input_specs(first))
        whole = compare(graph_of(first), second, batches, "cpu").worst
        assert found(first, second, {"x": X}).discrepancy == pytest.approx(whole, rel=1e-6)


def test_single_number_for_each_row_has_no_divergence() -> None:
    body, b = "y = Gemm(x, W, b)", np.float32([1])
    first, second = (plain(body, "float[N, 1] y", W=W[:, :1], b=part) for part in (0 * b, b))
    assert found(first, second, {"x": X}).divergence is None


# What is not finite, and what does not run


def test_places_where_the_original_is_not_finite_are_passed_over() -> None:
    body, outputs = "l = Gemm(x, W, b)  s = Sqrt(l)  y = Add(s, m)", "float[N, 3] y"
    minus = np.float32([0, -np.inf, 0])
    judgement = found(plain(body, outputs, m=minus), plain(body, outputs, m=minus + np.float32(0.5)), {"x": X})
    with np.errstate(invalid="ignore"):
        old = np.sqrt(held_out(X) @ W)[:, [0, 2]]
    old = old[np.isfinite(old)]
    assert judgement.discrepancy == pytest.approx(relative(old, old + 0.5), rel=1e-4)
    assert judgement.divergence is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_candidate_that_is_not_finite_is_infinitely_far(bad: float) -> None:
    assert judged(plain(), plain(b=np.float32([0, bad, 0])), {"x": X}) == Judgement(np.inf, None)


@pytest.mark.parametrize(
    "body",
    ["r = Reshape(x, ten)  y = MatMul(r, W)", "c = Concat <axis = 1> (x, x)  y = MatMul(c, W)", "y = local.unknown(x)"],
    ids=["run", "load", "operator"],
)
def test_candidate_that_fails_is_infinitely_far(body: str) -> None:
    candidate = plain(body, "float[K, 3] y", ten=np.int64([10, 4]))
    assert judged(plain(), candidate, {"x": X}) == Judgement(np.inf, None)


def test_candidate_whose_outputs_have_other_shapes_is_infinitely_far() -> None:
    candidate = plain("y = MatMul(x, W)", "float[N, 2] y", W=W[:, :2])
    assert judged(plain(), candidate, {"x": X}) == Judgement(np.inf, None)


def test_original_that_fails_cannot_be_compared_with() -> None:
    original = plain("r = Reshape(x, ten)  y = MatMul(r, W)", "float[K, 3] y", ten=np.int64([10, 4]))
    assert judged(original, plain(), {"x": X}) is None


def test_failing_machine_is_no_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise MachineError("onnxruntime no longer gets a CUDA session for this model.")

    monkeypatch.setattr(judging, "Session", failing)
    with pytest.raises(MachineError, match="no longer gets a CUDA session"):
        judged(plain(b=0 * SHIFTED), plain(b=SHIFTED), {"x": X})


@pytest.mark.parametrize(
    ("body", "outputs", "rows"),
    [
        ("l = MatMul(x, W)  y = ArgMax <axis = 1> (l)", "int64[N, 1] y", 60),
        ("l = MatMul(x, W)  y = SplitToSequence <axis = 1> (l)", "seq(float[N, 1]) y", 60),
        ("l = MatMul(x, W)  r = RandomNormalLike(l)  y = Add(l, r)", "float[N, 3] y", 60),
        ("l = MatMul(x, W)  n = Neg(b)  o = Log(n)  y = Add(l, o)", "float[N, 3] y", 60),
        ("y = MatMul(x, W)", "float[N, 3] y", 4),
    ],
    ids=["integers", "sequence", "random", "nowhere finite", "no row held out"],
)
def test_nothing_to_compare(body: str, outputs: str, rows: int) -> None:
    original = plain(body, outputs, b=np.ones(3, np.float32))
    assert judged(original, original, {"x": X[:rows]}) is None


def test_outputs_that_cannot_be_compared_are_left_out() -> None:
    body = "y = Gemm(x, W, b)  r = RandomNormalLike(y)  k = ArgMax <axis = 1> (y)  s = SequenceConstruct(y, y)"
    outputs = "float[N, 3] r, int64[N, 1] k, seq(float[N, 3]) s, float[N, 3] y"
    assert found(plain(body, outputs), plain(body, outputs, b=SHIFTED), {"x": X}) == found(
        plain(), plain(b=SHIFTED), {"x": X}
    )


def test_float16_outputs() -> None:
    text = "g (float16[N, 4] x) => (float16[N, 3] y) { y = Gemm(x, W, b) }"
    first, second = (model(text, W=np.float16(W), b=np.float16(b)) for b in (0 * SHIFTED, SHIFTED))
    judgement, old = found(first, second, {"x": np.float16(X)}), held_out(X) @ W
    assert judgement.discrepancy == pytest.approx(relative(old, old + SHIFTED), rel=0.01)
    assert judgement.divergence is not None


# The best


@pytest.mark.parametrize(
    ("judgements", "best"),
    [
        ([(0.3, 0.1), (0.2, 0.9), (0.4, 0.0)], 1),
        ([(0.2, 0.9), (0.2 * CLOSE, 0.1)], 1),
        ([(0.2, 0.9), (0.2 * CLOSE + 1e-9, 0.1)], 0),
        ([(0.21, None), (0.2, None)], 1),
        ([(0.21, 0.5), (0.2, 0.5)], 1),
        ([(0.2, 0.5), (0.2, 0.5)], 0),
        ([(np.inf, None), (0.9, 3.0)], 1),
        ([(np.inf, None), (np.inf, None)], 0),
        ([(0.0, 0.0), (0.1, 0.0)], 0),
    ],
)
def test_nearest_is_best_and_among_close_ones_the_least_divergence(
    judgements: list[tuple[float, float | None]], best: int
) -> None:
    assert best_of([Judgement(*pair) for pair in judgements]) == best


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=6))
def test_best_is_close_to_the_nearest_and_diverges_no_more(pairs: list[tuple[float, float]]) -> None:
    judgements = [Judgement(*pair) for pair in pairs]
    best = judgements[best_of(judgements)]
    nearest = min(judgements, key=lambda part: part.discrepancy)
    assert best.discrepancy <= CLOSE * nearest.discrepancy
    assert best.divergence is not None
    assert nearest.divergence is not None
    assert best.divergence <= nearest.divergence


# To the end


def test_candidate_that_is_not_finite_leaves_a_report_that_can_be_written() -> None:
    text = """g (float[N, 8] x) => (float[N, 3] y) {
        [fc1] a = MatMul(x, w1)  h = Relu(a)  [fc2] c = MatMul(h, w2)  s = Add(c, b)  y = Sqrt(s)
    }"""
    rng, x = np.random.default_rng(2), normal(300, 8)
    weights: dict[str, Weight] = {
        "w1": rng.standard_normal((8, 30)).astype(np.float32), "w2": rng.standard_normal((30, 3)).astype(np.float32)
    }  # fmt: skip
    c = np.maximum(x @ weights["w1"], 0) @ weights["w2"]
    proto = model(text, **weights, b=1 - c.min(0))
    report = onnxdpp.prune(proto, {"x": x}, keep=0.8, provider="cpu").report
    (layer,) = report["layers"]
    asked = [entry for entry in layer["contest"] if entry["divergence"] is not None]
    infinite = [entry for entry in layer["contest"] if entry["discrepancy"] is None]
    assert len(asked) > 1
    assert len(infinite) > 1
    jsonschema.validate(json.loads(to_json(report)), schema("report"))


def test_report_tells_what_was_judged_and_the_best_of_it_is_taken() -> None:
    report = onnxdpp.prune(mlp(), {"x": normal(300, 8)}, keep=0.4, method="auto", provider="cpu").report
    several = 0
    for layer in report["layers"]:
        entries = layer["contest"]
        assert all(type(entry["sensitivity"]) is bool for entry in entries)
        assert {entry["sensitivity"] for entry in entries} == {True, False}
        assert [entry["loss"] for entry in entries] == sorted(entry["loss"] for entry in entries)
        asked = [entry for entry in entries if entry["discrepancy"] is not None]
        several += len(asked) > 1
        if not asked:
            best = entries[0]
        else:
            best = asked[best_of([Judgement(entry["discrepancy"], entry["divergence"]) for entry in asked])]
        assert (layer["method"], layer["loss_held_out"]) == (best["method"], best["loss"])
    assert several


def test_winner_is_judged_as_the_model_that_it_makes() -> None:
    """Nearly: in the end it is refitted on the rows held out as well."""
    text = "g (float[N, 8] x) => (float[N, 3] y) { [fc1] a = Gemm(x, w1, b1)  p = Tanh(a)  [fc2] y = Gemm(p, w2, b2) }"
    proto, x = mlp(text, w1=(8, 40), b1=(40,), w2=(40, 3), b2=(3,)), normal(1000, 8)
    result = onnxdpp.prune(proto, {"x": x}, keep=0.4, method="auto", provider="cpu")
    (layer,) = result.report["layers"]
    judged = [entry for entry in layer["contest"] if entry["discrepancy"] is not None]
    assert len(judged) > 1
    (best,) = (entry for entry in judged if entry["loss"] == layer["loss_held_out"])
    before, after = (run(part, {"x": held_out(x)})[0] for part in (proto, result.model))
    assert best["discrepancy"] == pytest.approx(relative(before, after), rel=0.1)
