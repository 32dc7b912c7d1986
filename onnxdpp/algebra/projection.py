"""Exact draws from a projection DPP, blocked.

For an orthonormal V (n, t) the DPP of ``V Vᵀ`` picks t items one after the other, i with probability ``p_i / Σp``,
where ``p_i = ‖v_i‖² - ‖v_i Q‖²`` and Q is an orthonormal basis of the rows picked so far (algorithm 1 of [1]_).
Updating every p after every pick is bound by memory. Here a block of candidates is drawn from the p as they stand and
each is accepted with ``p_now / p_then``: the same law, since p only falls; all that concerns n rows is then one matrix
product per block, O(n t²) in all.

References
----------
.. [1] A. Kulesza, B. Taskar, arXiv:1207.6083, section 2.4.4.
.. [2] S. Barthelmé, N. Tremblay, P.-O. Amblard, "A Faster Sampler for Discrete Determinantal Point Processes",
   AISTATS 2023, PMLR 206. Accept and reject with stale leverage scores.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_BLOCK = 64


def sample_projection_dpp(vectors: Array, rng: np.random.Generator) -> Indices:
    """Draw from the DPP whose marginal kernel is ``V Vᵀ``.

    Parameters
    ----------
    vectors : (n, t) float64 array
        Orthonormal columns.
    rng : numpy.random.Generator

    Returns
    -------
    (t,) intp array
        Distinct items, in order of choice.

    Notes
    -----
    About 2 n t² flops, nearly all in matrix products.
    """
    t = vectors.shape[1]
    scores = np.einsum("ij,ij->i", vectors, vectors)
    basis = np.empty((t, 0))
    chosen: list[int] = []
    while len(chosen) < t:
        # About two thirds of as many candidates as are wanted are accepted: few blocks, few in vain.
        size = min(t - len(chosen), _BLOCK)
        candidates = rng.choice(len(scores), size=size, p=scores / scores.sum())
        rows = vectors[candidates]
        rows = rows - (rows @ basis) @ basis.T
        accepted = _accept(rows, scores[candidates], rng.random(size), t - len(chosen))
        fresh, _ = np.linalg.qr(rows[accepted].T)
        fresh, _ = np.linalg.qr(fresh - basis @ (basis.T @ fresh))  # twice is enough
        scores -= np.square(vectors @ fresh).sum(axis=1)
        chosen.extend(candidates[accepted].tolist())
        basis = np.hstack([basis, fresh])
        np.maximum(scores, 0.0, out=scores)
        scores[chosen] = 0.0
    return np.array(chosen, dtype=np.intp)


def _accept(rows: Array, scores: Array, coins: Array, wanted: int) -> list[int]:
    """Which candidates stay: each with (norm² left beside those accepted before it) / (norm² when it was drawn)."""
    gram = rows @ rows.T
    left = np.diagonal(gram).copy()
    factor = np.empty_like(gram)
    accepted: list[int] = []
    for j, coin in enumerate(coins):
        if len(accepted) == wanted:
            break
        if coin * scores[j] < left[j]:
            a = len(accepted)
            factor[a] = (gram[j] - factor[:a, j] @ factor[:a]) / np.sqrt(left[j])
            left -= np.square(factor[a])
            left[j] = 0.0
            accepted.append(j)
    return accepted
