"""The clockwork of latency, with a clock of our own: nothing here takes time. For real ones: tests/benchmarks."""

from collections.abc import Callable

import pytest

from onnxdpp.latency import LEAST, PAIRS, interleaved


class Clock:
    """Tells the seconds that the runs have taken; each takes what `seconds(which, now)` says."""

    def __init__(self, seconds: Callable[[int, float], float]) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.log: list[int] = []
        self.swapped: list[bool] = []

    def __call__(self) -> float:
        return self.now

    def pair(self, second_first: bool) -> tuple[Callable[[], None], Callable[[], None]]:
        self.swapped.append(second_first)
        return lambda: self._run(0), lambda: self._run(1)

    def _run(self, which: int) -> None:
        self.log.append(which)
        self.now += self.seconds(which, self.now)


def ratio(seconds: Callable[[int, float], float]) -> float:
    clock = Clock(seconds)
    return interleaved(clock.pair, 1, clock=clock).ratio


def test_latency_is_the_seconds_of_a_run() -> None:
    clock = Clock(lambda which, now: (0.004, 0.001)[which])
    found = interleaved(clock.pair, 7, clock=clock)
    assert (found.before, found.after, found.ratio) == pytest.approx((0.004, 0.001, 0.25), rel=1e-12, abs=0)
    assert (found.rows, found.disturbed) == (7, 0)
    assert clock.swapped == [False, True] * (PAIRS // 2)


@pytest.mark.parametrize("seconds", [2e-6, 1e-3, 5.0])
def test_a_model_against_itself_has_the_ratio_one(seconds: float) -> None:
    assert ratio(lambda which, now: seconds) == pytest.approx(1, rel=1e-9)


def test_what_slows_down_steadily_meets_both_alike() -> None:
    assert ratio(lambda which, now: 0.001 * (1 + now)) == pytest.approx(1, rel=0.01)


def test_interruptions_are_left_out() -> None:
    """Of every ten runs four take twenty times as long, and those are all of one model."""
    count = [0]

    def seconds(which: int, now: float) -> float:
        count[0] += which == 1
        return 0.02 if which == 1 and count[0] % 10 < 4 else 0.001

    clock = Clock(seconds)
    found = interleaved(clock.pair, 1, clock=clock)
    assert found.ratio == pytest.approx(1, rel=1e-9)
    assert 0.1 < found.disturbed < 0.3


def test_runs_take_turns() -> None:
    """Slow ones: each is run once to warm up, and then in as few rounds as may be."""
    clock = Clock(lambda which, now: 1.0)
    found = interleaved(clock.pair, 1, clock=clock)
    rounds = [0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0]
    assert clock.log == [0, 1, *rounds] * PAIRS
    assert found.rounds == LEAST * PAIRS == len(rounds) // 4 * PAIRS


def test_progress_is_told() -> None:
    clock = Clock(lambda which, now: 1.0)
    told: list[float] = []
    interleaved(clock.pair, 1, told.append, clock)
    assert told == [(number + 1) / PAIRS for number in range(PAIRS)]
