"""A k-DPP of ``L = L' + epsilon I`` as a DPP of ``z L'``, accepted by its size, and a uniform rest.

Expanding the determinant in epsilon,

    det((L' + εI)_S) = Σ_{T⊆S} ε^{k-|T|} det(L'_T),

and each T of size t lies in ``C(n-t, k-t)`` sets S of size k. So a draw of the k-DPP is

1. a core T with probability proportional to ``w_{|T|} det(L'_T)``, ``w_t = ε^{k-t} C(n-t, k-t)``,
2. and the other ``k - |T|`` items uniformly from the rest.

The core is small where ``L'`` is smooth (some 70 of 157 on an MNIST edge kernel, 40 of 614 on a CIFAR-10 one),
and what costs time, costs it by t. For the core: ``det(z L'_T) = z^t det(L'_T)``, hence a T from the *DPP* of ``z L'``,
accepted with probability ``w_t z^-t / max_s w_s z^-s``, has exactly the law of step 1, whatever the *tilt* z.
Since ``w`` is log-concave, ``z = w_{t+1} / w_t = (k - t) / (ε (n - t))`` puts the peak of the acceptance at t, and at
the mean size t* = E_z|T| most proposals pass. The slope of that mean is the variance, ``d E_z|T| / d log z =
Var_z|T|``, so Newton's method finds t*. A z chosen with regard to rejected proposals, or any change of route after
them, leaves the law of the accepted one as it is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_STEP = np.log(10.0)


@dataclass(frozen=True)
class Mixture:
    """What of a k-DPP does not depend on ``L'``: n items, k of them kept, epsilon on the diagonal."""

    n: int
    k: int
    epsilon: float

    def log_weights(self) -> Array:
        """``log w_t`` for t = 0..k, (k + 1,) float64."""
        t = np.arange(self.k + 1, dtype=np.float64)
        logs: Array = (self.k - t) * np.log(self.epsilon) + gammaln(self.n - t + 1) - gammaln(self.k - t + 1)
        return logs

    def tilt(self, t: float) -> float:
        """The z at which the acceptance peaks at size t, continued to real ``0 <= t <= k``; positive."""
        return max(self.k - t, 1e-9) / (self.epsilon * max(self.n - t, 1e-9))

    def acceptances(self, tilt: float) -> Array:
        """``w_t z^-t / max`` for t = 0..k, (k + 1,) float64; a larger core is never accepted."""
        logs = self.log_weights() - np.log(tilt) * np.arange(self.k + 1)
        accept: Array = np.exp(logs - logs.max())
        return accept

    def expected_acceptance(self, tilt: float, mean: float, variance: float) -> float:
        """Share of proposals that pass, the sizes taken as normal with this mean and variance."""
        t = np.arange(self.k + 1)
        spread = max(variance, 0.1)
        density = np.exp(-0.5 * np.square(t - mean) / spread) / np.sqrt(2.0 * np.pi * spread)
        return min(1.0, float(density @ self.acceptances(tilt)))

    def better_tilt(self, tilt: float, mean: float, variance: float) -> float:
        """One step of Newton's method towards ``E_z|T| = t, z = tilt(t)``, at most by a factor of ten."""
        low, high = 0.0, float(self.k)
        for _ in range(40):
            t = 0.5 * (low + high)
            predicted = mean + variance * np.log(self.tilt(t) / tilt)
            low, high = (t, high) if predicted > t else (low, t)
        step = np.log(self.tilt(low) / tilt)
        return float(tilt * np.exp(np.clip(step, -_STEP, _STEP)))

    def fill(self, core: Indices, rng: np.random.Generator) -> Indices:
        """Step 2: the core and k - t of the other items, uniformly; sorted."""
        free = np.ones(self.n, dtype=bool)
        free[core] = False
        rest = rng.choice(np.flatnonzero(free), size=self.k - len(core), replace=False, shuffle=False)
        return np.sort(np.concatenate([core, rest]))
