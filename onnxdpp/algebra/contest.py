"""``auto``: every candidate is fitted on some rows and judged on others, and the best one is taken.

No rule of selection wins everywhere: the mode of a DPP keeps what is diverse, least-error selection what the consumers
need, and with few rows either may follow noise. So each layer holds a contest. Candidates choose and refit on the
rows to fit; the error of their refit on the rows held out is closed form too (`refit.squared_error`), so that no model
runs for it. The ridge of an affine refit of neurons is chosen in the same way; all others have `refit.ridge`.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from onnxdpp.algebra.moments import Moments
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.refit import Fit, refit_edges, refit_neurons, relative_loss, ridge
from onnxdpp.algebra.selection import Rule, choose_edges, choose_neurons, edge_beta, neuron_beta

Indices = NDArray[np.intp]

NEURONS = (("dpp", "rbf"), ("obs", "rbf"), ("omp", "rbf"), ("importance", "rbf"))
PLAIN = (("obs", "rbf"), ("omp", "rbf"))
"""Candidates that join in with all errors of the consumers counting the same, where those of the others do not."""
EDGES = (("dpp", "linear"), ("obs", "rbf"), ("omp", "rbf"), ("fluctuation", "rbf"), ("importance", "rbf"))
FEW = 5
"""Forward selection of edges, k² operations for each input and output, joins in where one input of so many stays."""
SWAPS = 100
"""How many pairs of neurons a candidate may swap."""
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1)
FINALISTS = 3
CLOSE = 1.1
"""Of the best loss: choices no further from it are told apart by the model's outputs."""
WIDEST = 6000
"""Inputs above which least-error selection (n³ flops, bound by memory) is left out."""


@dataclass(frozen=True)
class Entry:
    """A candidate and what it came to.

    Attributes
    ----------
    method, kernel : str
    beta : float or None
        Of the kernel, as used.
    strength : float
        Of the ridge of its refit.
    loss : float or None
        Of its refit on the rows held out.
    keep : integer array
        Neurons, sorted; or for edges the inputs that each output keeps, one array for each value that is read.
    fits : list of Fit
    weighted : bool
        Whether errors of the consumers counted by what the model's outputs feel of them.
    """

    method: str
    kernel: str
    beta: float | None
    strength: float
    loss: float | None
    keep: Indices | list[Indices]
    fits: list[Fit]
    weighted: bool = False


def neuron_contest(
    fit: Sequence[Inputs],
    held: Sequence[Inputs],
    n: int,
    k: int,
    rule: Rule,
    seed: SeedSequence,
    sections: Indices | None,
    plain: Sequence[Inputs] | None = None,
    given: Indices | None = None,
) -> list[Entry]:
    """All candidates for a layer of n neurons of which k stay, the best one first.

    Parameters
    ----------
    fit, held : sequences of Inputs
        From the rows to fit and from those held out, one for each value that consumers read.
    n, k : int
    rule : Rule
        What else is asked for: beta, epsilon, the form of the refit.
    seed : SeedSequence
    sections : (n,) integer array or None
    plain : sequence of Inputs, optional
        The rows to fit, where `fit` and `held` weigh errors (`Inputs.through`).
    given : (k,) integer array, optional
        Neurons that are chosen already: only the ridge is left to be judged.
    """
    if given is not None:
        return [_refitted(Entry("given", "rbf", None, 0.0, None, given, []), fit, held, rule)]
    wide = max(len(part.neurons) for part in fit) > WIDEST
    entries = []
    candidates = [(*candidate, fit) for candidate in NEURONS]
    if plain is not None:
        candidates += [(*candidate, plain) for candidate in PLAIN]
    for method, kernel, shown in candidates:
        if wide and method in ("obs", "omp"):
            continue
        own = replace(rule, method=method, kernel=kernel, swaps=0 if wide else SWAPS)
        beta = neuron_beta(shown, n, own)
        keep = choose_neurons(shown, n, k, own, beta, seed, sections)
        weighted = plain is not None and shown is fit
        entries.append(_refitted(Entry(method, kernel, beta, 0.0, None, keep, [], weighted), fit, held, rule))
    return sorted(entries, key=lambda entry: _order(entry.loss))


def edge_contest(
    fit: Sequence[Inputs], held: Sequence[Inputs], k: int, rule: Rule, seed: SeedSequence, executor: Executor
) -> list[Entry]:
    """All candidates for the edges of a projection of which each output keeps k, the best one first."""
    entries = []
    seeds = [seed] if len(fit) == 1 else seed.spawn(len(fit))
    for method, kernel in EDGES:
        own = replace(rule, method=method, kernel=kernel)
        if method in ("obs", "omp") and rule.pattern is not None:
            continue
        if method == "omp" and FEW * k > len(fit[0].neurons):
            continue
        betas = [edge_beta(part.moments, own) for part in fit]
        kept = [
            choose_edges(part.moments, k, own, beta, part_seed, executor)
            for part, beta, part_seed in zip(fit, betas, seeds, strict=True)
        ]
        strength = ridge(fit[0].moments, k, rule.form)
        fits = [
            refit_edges(part.moments, edges, rule.form, executor, strength)
            for part, edges in zip(fit, kept, strict=True)
        ]
        loss = relative_loss((part.moments, found) for part, found in zip(held, fits, strict=True))
        entries.append(Entry(method, kernel, betas[0], strength, loss, kept, fits))
    return sorted(entries, key=lambda entry: _order(entry.loss))


def _refitted(entry: Entry, fit: Sequence[Inputs], held: Sequence[Inputs], rule: Rule) -> Entry:
    """An entry for neurons, with the best ridge."""
    keep = entry.keep
    assert isinstance(keep, np.ndarray)
    tried = []
    for strength in _ridges(fit[0].moments, len(keep), rule):
        fits = [refit_neurons(part.moments, part.kept(keep), rule.form, strength) for part in fit]
        loss = relative_loss((part.moments, found) for part, found in zip(held, fits, strict=True))
        tried.append(replace(entry, strength=strength, loss=loss, fits=fits))
    return min(tried, key=lambda found: _order(found.loss))


def finalists(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that the model's outputs are to tell apart, the best first, each with a choice of its own.

    Those whose losses are close to the best; and, where errors are weighted, the choices without: sensitivities are
    averages over rows, and may mislead where errors are large just where the outputs feel them.
    """
    found: list[Entry] = []
    best = _order(entries[0].loss)
    weighted = any(entry.weighted for entry in entries)
    for entry in entries:
        close = len(found) < FINALISTS and _order(entry.loss) <= CLOSE * best
        if (close or (weighted and not entry.weighted)) and all(_other(entry, before) for before in found):
            found.append(entry)
    return found


def _other(entry: Entry, before: Entry) -> bool:
    mine, theirs = (part.keep if isinstance(part.keep, list) else [part.keep] for part in (entry, before))
    return not all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def _ridges(moments: Moments, k: int, rule: Rule) -> list[float]:
    """The ridges to try: the plain one first, so that it is taken among equals."""
    plain = ridge(moments, k, rule.form)
    return [plain] if rule.form == "linear" else [plain, *(strength for strength in RIDGES if strength != plain)]


def _order(loss: float | None) -> float:
    return np.inf if loss is None else loss
