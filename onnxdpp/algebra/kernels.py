"""Likelihood kernels of DPPs over neurons and edges, all from second moments and never from rows.

With the Gram ``G = XᵀX / r`` of what enters a consumer and its weights ``W`` (n, m):

===========  ============================================  =============================================
unit         feature of item s                             Gram of the features
===========  ============================================  =============================================
neuron       its activation ``x_s``                        ``G_st``
edge of j    what it carries into output j, ``w_sj x_s``   ``w_sj w_tj G_st``  (`edge_gram`)
===========  ============================================  =============================================

A kernel then is a function of that Gram alone: ``exp(-beta d²)`` with ``d²(s, t) = G_ss + G_tt - 2 G_st``
(`rbf_kernel`), or the covariance of what the items contribute (`linear_kernel`). Each costs O(n²), whatever
the number of rows. The DPP's own kernel is ``L = L' + epsilon I``; epsilon is added by whoever uses ``L'``.

References
----------
.. [1] Z. Mariet, S. Sra, "Diversity Networks: Neural Network Compression Using Determinantal Point
   Processes", ICLR 2016, arXiv:1511.05077. The rbf kernel of neurons.
.. [2] R. Acharyya, A. Chattoraj, B. Zhang, S. Das, D. Stefankovic, "Statistical Mechanical Analysis of
   Neural Network Pruning", UAI 2021, arXiv:2006.16617. The rbf kernel of edges.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A squared distance below this share of the largest diagonal entry is rounding: two equal items.
_ROUNDING = 1e-12
# A layer's edge distances are n² m numbers; their median needs no more than a fixed, even sample of them.
_MEDIAN_ITEMS = 256
_MEDIAN_OUTPUTS = 32


def squared_distances(gram: Array) -> Array:
    """Mean squared distance between the features of each two items.

    Parameters
    ----------
    gram : (n, n) float64 array
        Second moments of the features, not centred.

    Returns
    -------
    (n, n) float64 array
        ``d²(s, t) = G_ss + G_tt - 2 G_st``, clipped at 0 (rounding), zeros on the diagonal.

    Examples
    --------
    >>> squared_distances(np.array([[4.0, 2.0], [2.0, 1.0]]))
    array([[0., 1.],
           [1., 0.]])
    """
    diagonal = np.diagonal(gram)
    distances = np.add.outer(diagonal, diagonal)
    distances -= 2.0 * gram
    np.maximum(distances, 0.0, out=distances)
    np.fill_diagonal(distances, 0.0)
    return distances


def edge_gram(gram: Array, weights: Array) -> Array:
    """Gram of what the edges into one output carry.

    Parameters
    ----------
    gram : (n, n) float64 array
        Second moments of the inputs.
    weights : (n,) float64 array
        Weights of the edges into one output.

    Returns
    -------
    (n, n) float64 array
        ``w_s w_t G_st``; symmetric to the bit where `gram` is.
    """
    # The outer product first: (w_s w_t) G_st is symmetric in floating point, w_s (w_t G_st) is not.
    scaled = np.multiply.outer(weights, weights)
    scaled *= gram
    return scaled


def median_squared_distance(gram: Array, weights: Array | None = None) -> float:
    """Median of the squared distances between distinct items: ``beta = 1 / median`` fits a layer's scale.

    Parameters
    ----------
    gram : (n, n) float64 array
        Second moments, not centred.
    weights : (n, m) or (n,) float64 array, optional
        With it the items are edges: the median is over the pairs of edges of all outputs together, one
        number for the layer. Beyond 256 inputs or 32 outputs an evenly spaced sample of them is used.

    Returns
    -------
    float
        Always positive. Where half of the pairs coincide (dead pixels), the median of the pairs that differ
        (by more than 1e-12 of the largest diagonal entry); where all coincide, 1.0, since any beta then
        gives the same kernel.

    Examples
    --------
    >>> median_squared_distance(np.diag([1.0, 1.0, 3.0]))
    4.0
    >>> median_squared_distance(np.ones((3, 3)))
    1.0
    """
    if weights is None:
        items = _strictly_upper(squared_distances(gram))
        floor = float(np.diagonal(gram).max(initial=0.0))
    else:
        weights = weights.reshape(len(weights), -1)
        rows = _evenly(weights.shape[0], _MEDIAN_ITEMS)
        outputs = _evenly(weights.shape[1], _MEDIAN_OUTPUTS)
        sample, scales = gram[np.ix_(rows, rows)], weights[np.ix_(rows, outputs)]
        items = np.concatenate([_strictly_upper(squared_distances(edge_gram(sample, w))) for w in scales.T])
        floor = float((np.diagonal(sample)[:, None] * scales**2).max(initial=0.0))
    floor *= _ROUNDING
    median = float(np.median(items)) if items.size else 0.0
    if median > floor:
        return median
    distinct = items[items > floor]
    return float(np.median(distinct)) if distinct.size else 1.0


def rbf_kernel(gram: Array, beta: float) -> Array:
    """Gaussian kernel of the features, by their mean squared distance.

    Parameters
    ----------
    gram : (n, n) float64 array
        Second moments of the features, not centred; for edges the result of `edge_gram`.
    beta : float
        Scale, >= 0, on *mean* squared distances: 10 here is the papers' ``10 / |T|`` on summed ones.

    Returns
    -------
    (n, n) float64 array
        ``L'_st = exp(-beta d²(s, t))``: positive semidefinite, exact ones on the diagonal.

    Raises
    ------
    ValueError
        If beta is negative or not finite.
    """
    if not (np.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and at least 0, got {beta}.")
    kernel = squared_distances(gram)
    kernel *= -beta
    return np.exp(kernel, out=kernel)


def linear_kernel(covariance: Array, weights: Array) -> Array:
    """Covariance of what the items contribute to the consumer, in units of its mean variance.

    Parameters
    ----------
    covariance : (n, n) float64 array
        *Centred* second moments of the inputs, ``G - mean meanᵀ``.
    weights : (n, m) or (n,) float64 array
        (n, m), the consumer's rows: the items are neurons. (n,), the weights into one output: its edges.

    Returns
    -------
    (n, n) float64 array
        ``L'_st = (w_s · w_t) Cov_st``, divided by the mean of its diagonal; where that mean is 0 (nothing varies,
        or no weight) the kernel is 0. Positive semidefinite (Schur's product theorem).

    Notes
    -----
    A k-DPP of it is volume sampling of the contributions; its MAP is pivoted Cholesky.
    """
    if weights.ndim == 1:
        kernel = edge_gram(covariance, weights)
    else:
        kernel = weights @ weights.T
        kernel *= covariance
    scale = float(np.diagonal(kernel).mean()) if len(kernel) else 0.0
    if scale > 0.0:
        kernel /= scale
        return kernel
    return np.zeros_like(kernel)


def _strictly_upper(matrix: Array) -> Array:
    return matrix[np.triu_indices(len(matrix), 1)]


def _evenly(size: int, at_most: int) -> NDArray[np.intp]:
    """`at_most` indices below `size`, evenly spaced; all of them where there are no more."""
    count = min(size, at_most)
    return np.arange(count, dtype=np.intp) * size // max(count, 1)
