"""Choosing layers again with the others as they are: which runs are made, what is taken, what is told of it.

Runs and judge are stand-ins: a run answers with what stays, and the judge with how far that is from the original.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import graph_of, mlp, normal

from onnxdpp import sweeping
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.job import Job
from onnxdpp.judging import Judgement
from onnxdpp.options import Options
from onnxdpp.planning import Plan, plan

Keeps = tuple[tuple[int, ...], tuple[int, ...]]
"""What stays of fc1 (6) and of fc2 (5)."""

FIRST: Keeps = ((0, 1), (0, 1))
BEST: Keeps = ((0, 5), (0, 4))
"""What each layer makes of a choice to begin with."""
ONE, OTHER = (BEST[0], FIRST[1]), (FIRST[0], BEST[1])


class World:
    """Sweeps over the two layers of `mlp`, by distances from the original for whatever stays; None where none is known.

    Attributes
    ----------
    runs : list of Keeps
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, distances: dict[Keeps, float | None]) -> None:
        self.runs: list[Keeps] = []
        self._distances = distances
        monkeypatch.setattr(sweeping, "execute", self._execute)
        monkeypatch.setattr(sweeping, "Judge", self._judge)

    def swept(self, sweeps: int, first: Keeps = FIRST) -> tuple[Plan, Plan, str]:
        """The plan before and after, and what is told."""
        options, batches = Options(keep=0.4, sweeps=sweeps, mask="a mask"), {"x": normal(20, 4)}
        graph = graph_of(mlp())
        job = Job.of(graph, options, open_batches(batches, input_specs(mlp())), "cpu", lambda text, fraction: None)
        todo = plan(graph, options)
        return todo, *sweeping.swept(job, todo, [SimpleNamespace(keep=list(keep)) for keep in first])

    def _execute(self, job: Job, todo: Plan, *, hold_out: bool) -> tuple[Keeps, list[Any], list[int]]:
        assert hold_out, "rows that models are judged on must not be fitted"
        keeps = tuple(target.keep or best for target, best in zip(todo.targets, BEST, strict=True))
        assert all((target.keep is None) == (target.start is not None) for target in todo.targets)
        self.runs.append(keeps)
        return keeps, [SimpleNamespace(keep=list(keep)) for keep in keeps], []

    def _judge(self, graph: Any, batches: Any, provider: str, mask: str | None = None) -> Any:
        assert mask == "a mask"
        return SimpleNamespace(judge=self._judgement)

    def _judgement(self, keeps: Keeps) -> Judgement | None:
        distance = self._distances[keeps]
        return None if distance is None else Judgement(distance, None)


def keeps(found: Plan) -> Keeps:
    return tuple(target.keep for target in found.targets)


def test_layer_is_chosen_again_with_the_others_as_they_have_become(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {FIRST: 0.5, ONE: 0.4, BEST: 0.3})
    _, found, told = world.swept(1)
    assert world.runs == [FIRST, ONE, BEST]
    assert keeps(found) == BEST
    assert told == "Sweeps took 2 of 2 new choices: 0.5 to 0.3 on rows held out."


@pytest.mark.parametrize("distance", [0.5, 0.6])
def test_choice_that_comes_no_nearer_is_not_taken(monkeypatch: pytest.MonkeyPatch, distance: float) -> None:
    world = World(monkeypatch, {FIRST: 0.5, ONE: distance, OTHER: 0.4})
    _, found, told = world.swept(1)
    assert keeps(found) == OTHER
    assert told == "Sweeps took 1 of 2 new choices: 0.5 to 0.4 on rows held out."


def test_round_that_takes_nothing_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {FIRST: 0.5, ONE: 0.6, OTHER: 0.4, BEST: 0.45})
    _, found, told = world.swept(9)
    assert world.runs == [FIRST, ONE, OTHER, BEST, OTHER]
    assert keeps(found) == OTHER
    assert told.startswith("Sweeps took 1 of 4 new choices")


def test_plan_is_as_it_was_where_nothing_was_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    todo, found, told = World(monkeypatch, {FIRST: 0.5, ONE: 0.6, OTHER: 0.6}).swept(1)
    assert found is todo
    assert told == "Sweeps took 0 of 2 new choices: 0.5 to 0.5 on rows held out."


def test_layer_that_stays_whole_is_not_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuple(range(6))
    world = World(monkeypatch, {(whole, FIRST[1]): 0.5, (whole, BEST[1]): 0.4})
    world.swept(1, (whole, FIRST[1]))
    assert world.runs == [(whole, FIRST[1]), (whole, BEST[1])]


@pytest.mark.parametrize(("distance", "runs"), [(None, 1), (np.inf, 3)])
def test_distance_that_is_not_known_is_not_told(
    monkeypatch: pytest.MonkeyPatch, distance: float | None, runs: int
) -> None:
    world = World(monkeypatch, {FIRST: distance, ONE: distance, OTHER: distance})
    todo, found, told = world.swept(1)
    assert found is todo
    assert len(world.runs) == runs
    assert told == f"Sweeps took 0 of {runs - 1} new choices."
