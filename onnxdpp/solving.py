"""What stays of one layer, and with which weights: by the method that was asked for, or the best of several.

All from moments. Only where several choices are nearly as good does the model run: the judge is asked about each.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from onnxdpp.algebra.contest import SWAPS, Entry, edge_contest, finalists, neuron_contest
from onnxdpp.algebra.moments import Matrix
from onnxdpp.algebra.neurons import Inputs, through
from onnxdpp.algebra.refit import Fit, cut, refit_edges, refit_neurons, relative_loss
from onnxdpp.algebra.selection import choose_edges, choose_neurons, edge_beta, expected_neurons, neuron_beta
from onnxdpp.algebra.tableau import swapped
from onnxdpp.graph.layers import Layer
from onnxdpp.judging import Judgement, best_of
from onnxdpp.options import Options
from onnxdpp.planning import Target
from onnxdpp.report import LayerResult

Indices = NDArray[np.intp]
Roots = Sequence[Matrix] | None


@dataclass(frozen=True)
class Solution:
    """What becomes of a layer.

    Attributes
    ----------
    observed : sequence of Inputs
        What it was fitted to, one for each value that consumers read.
    fits : list of Fit
        One for each of `observed`.
    keep : (k,) integer array or None
        The neurons that stay; None for edges.
    result : LayerResult
    """

    observed: Sequence[Inputs]
    fits: list[Fit]
    keep: Indices | None
    result: LayerResult


class Solver:
    """Chooses and refits, by the options.

    Parameters
    ----------
    options : Options
    executor : Executor
        Where the outputs of a projection, each a problem of its own, are solved side by side.
    hold_out : bool
        Of a trial run: whether what is held out stays so once the choice is made.
    """

    def __init__(self, options: Options, executor: Executor, hold_out: bool) -> None:
        self._hold_out = hold_out
        self._options = options
        self._executor = executor

    def own_size(self, layer: Layer, observed: Sequence[Inputs]) -> int:
        """How many neurons the layer's DPP itself would keep."""
        size = round(expected_neurons(observed, layer.n, replace(self._options.rule, method="dpp")))
        return min(layer.n, max(layer.least, size))

    def by_method(self, target: Target, observed: Sequence[Inputs], roots: Roots, seed: SeedSequence) -> Solution:
        """As the options say.

        Parameters
        ----------
        target : Target
        observed : sequence of Inputs
        roots : sequence of (m, m) arrays or None
            What errors count, for each of `observed`, when neurons are chosen; see `Sensitivity.roots`.
        seed : SeedSequence
        """
        rule, form = self._options.rule, self._options.refit
        if isinstance(target.part, Layer):
            layer, felt = target.part, through(observed, roots)
            beta = neuron_beta(felt, layer.n, rule)
            keep = _given(target, felt, rule.form)
            if keep is None:
                keep = choose_neurons(felt, layer.n, target.k, rule, beta, seed, _sections(layer))
                return self._solution(target, observed, keep, beta, form, None)
            solution = self._solution(target, observed, keep, None, form, None)
            return replace(solution, result=replace(solution.result, method="given", kernel=None))
        kept, betas = [], []
        for part, own in zip(observed, [seed] if len(observed) == 1 else seed.spawn(len(observed)), strict=True):
            betas.append(edge_beta(part.moments, rule))
            kept.append(choose_edges(part.moments, target.k, rule, betas[-1], own, self._executor))
        return self._solution(target, observed, kept, betas[0], form, None)

    def by_contest(
        self,
        target: Target,
        fit: Sequence[Inputs],
        held: Sequence[Inputs],
        roots: Roots,
        seed: SeedSequence,
        judge: Callable[[Solution], Judgement | None],
    ) -> Solution:
        """Let all candidates choose and refit on some rows, and take the best on others.

        Parameters
        ----------
        target, roots, seed
            As above.
        fit, held : sequences of Inputs
            Of the rows to fit, and of those held out.
        judge : callable
            How far the model with such a solution is from the original, on rows held out.
        """
        part, options = target.part, self._options
        if isinstance(part, Layer):
            felt, judged = through(fit, roots), through(held, roots)
            plain, given = None if roots is None else fit, _given(target, felt, options.rule.form)
            entries = neuron_contest(felt, judged, part.n, target.k, options.rule, seed, _sections(part), plain, given)
        else:
            entries = edge_contest(fit, held, target.k, options.rule, seed, self._executor)
        best, judgements = self._judged(target, fit, finalists(entries), judge)
        if not self._hold_out:
            # The choice is made: now all rows may say what the weights shall be.
            pairs = zip(fit, held, strict=True)
            fit = [replace(part, moments=part.moments.merged(other.moments)) for part, other in pairs]
        solution = self._solution(target, fit, best.keep, best.beta, options.rule.form, best.strength)
        result = replace(
            solution.result,
            method=best.method,
            kernel=best.kernel if best.method == "dpp" else None,
            contest=[_told(entry, judgements) for entry in entries],
            loss_held_out=best.loss,
        )
        return replace(solution, result=result)

    def _judged(
        self,
        target: Target,
        fit: Sequence[Inputs],
        last: Sequence[Entry],
        judge: Callable[[Solution], Judgement | None],
    ) -> tuple[Entry, list[tuple[Entry, Judgement]]]:
        """The best of those whose losses are close, and what was found of each."""
        form = self._options.rule.form
        judgements = []
        for entry in last if len(last) > 1 else ():
            found = judge(self._solution(target, fit, entry.keep, entry.beta, form, entry.strength))
            if found is None:
                return last[0], []
            judgements.append((entry, found))
        best = best_of([found for _, found in judgements]) if judgements else 0
        return last[best], judgements

    def _solution(
        self,
        target: Target,
        observed: Sequence[Inputs],
        keep: Indices | list[Indices],
        beta: float | None,
        form: str,
        strength: float | None,
    ) -> Solution:
        if isinstance(keep, list):
            edges = list(zip(observed, keep, strict=True))
            bare = [refit_edges(part.moments, kept, "none", self._executor) for part, kept in edges]
            fits = [refit_edges(part.moments, kept, form, self._executor, strength) for part, kept in edges]
            neurons = None
        else:
            inputs = [(part, part.kept(keep)) for part in observed]
            bare = [cut(part.moments, kept) for part, kept in inputs]
            fits = [refit_neurons(part.moments, kept, form, strength) for part, kept in inputs]
            neurons = keep
        before, after = (
            relative_loss((part.moments, fit) for part, fit in zip(observed, found, strict=True))
            for found in (bare, fits)
        )
        return Solution(observed, fits, neurons, _result(target, self._options, beta, neurons, before, after))


def _given(target: Target, observed: Sequence[Inputs], form: str) -> Indices | None:
    """The neurons that stay, where that was decided, or begun with: then some are swapped for others."""
    if target.start is None or not isinstance(target.part, Layer):
        return None if target.keep is None else np.array(target.keep, np.intp)
    start = np.array(target.start, np.intp)
    return swapped(observed, target.part.n, form, start, most=SWAPS, sections=_sections(target.part))


def _sections(layer: Layer) -> Indices | None:
    """Of its neurons, where one of each must stay."""
    return layer.sections if layer.least > 1 else None


def _told(entry: Entry, judgements: Iterable[tuple[Entry, Judgement]]) -> dict[str, object]:
    found = next((found for other, found in judgements if other is entry), None)
    discrepancy = np.inf if found is None else found.discrepancy
    return {
        "method": entry.method,
        "kernel": entry.kernel,
        "sensitivity": entry.weighted,
        "ridge": entry.strength,
        "loss": entry.loss,
        "discrepancy": discrepancy if np.isfinite(discrepancy) else None,
        "divergence": None if found is None else found.divergence,
    }


def _result(
    target: Target,
    options: Options,
    beta: float | None,
    keep: Indices | None,
    before: float | None,
    after: float | None,
) -> LayerResult:
    return LayerResult(
        name=target.name,
        members=list(target.part.members) if isinstance(target.part, Layer) else [target.name],
        unit=options.unit,
        width=target.part.n,
        kept=target.k,
        keep=None if keep is None else keep.tolist(),
        method=options.rule.method,
        kernel=options.kernel if options.rule.uses_kernel else None,
        beta=beta,
        refit=options.refit,
        loss_before_refit=before,
        loss=after,
        loss_held_out=None,
        contest=None,
        observed="inputs",
        observations=0,
        seconds=0.0,
    )
