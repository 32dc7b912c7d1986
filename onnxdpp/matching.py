"""How many neurons weigh as much as so many edges.

Both are counted in parameters that may be other than zero; weights that are zero in the model already count too, since
a refit of neurons may fill them. Let P be those of the whole model. *Edges*: if each of the
``m_l`` outputs of layer l keeps ``k_l`` of its ``n_l`` edges, there stay

    P_e = P - sum_l (n_l - k_l) m_l.

*Neurons*: along each axis of a constant that a layer owns, the entries of its neurons that go are gone. With the
fraction f of every layer's neurons a constant has the product, over its axes, of what stays of them, and ``P_n(f)`` is
the sum over all constants. We take the largest f with ``P_n(f) <= P_e``: neurons never get more than edges have.

The papers' formula is the case of one hidden layer, of ``h_1`` neurons between ``d_in`` inputs and ``h_2`` neurons
behind, whose incoming edges are pruned to ``k_e`` for each neuron, without biases:

    k_e h_1 + h_1 h_2 = k_n (d_in + h_2)    or    k_e = k_n (d_in + h_2) / h_1 - h_2.

Biases count here: a neuron takes one with it, an edge does not. With them it is

    k_e = k_n (d_in + 1 + h_2) / h_1 - (h_2 + 1).
"""

from dataclasses import replace

from onnxdpp.budget import allocate
from onnxdpp.evaluation import parameters
from onnxdpp.job import Job
from onnxdpp.planning import Plan
from onnxdpp.pruning import with_intercepts


def matched(job: Job, neurons: Plan, edges: Plan) -> Plan:
    """The plan for neurons, with as many of them as weigh what a plan for edges leaves.

    Parameters
    ----------
    job : Job
        With the options that `neurons` was planned with.
    neurons, edges : Plan

    Raises
    ------
    UsageError
        If even the fewest neurons weigh more.
    """
    if all(target.k == target.part.n for target in edges.targets):
        return replace(neurons, targets=tuple(replace(target, k=target.part.n) for target in neurons.targets))
    options, graph = job.options, job.graph
    of_edges = replace(job, options=replace(options, unit="edge"))
    left = _left(of_edges, edges)
    goal = replace(
        options,
        keep=None,
        refit="linear" if options.refit == "none" else options.refit,  # neither puts biases in
        # The half outweighs rounding: what is compared are whole numbers.
        target_parameters=min(1.0, (left + 0.5) / parameters(graph.model, graph.folder)[0]),
        allocation="uniform",
    )
    found, _ = allocate(replace(job, options=goal), neurons)
    return found


def _left(job: Job, edges: Plan) -> int:
    """``P_e``."""
    base, todo = with_intercepts(job, edges)
    dropped = sum((target.part.n - target.k) * part.m for target in todo.targets for part in target.consumers)
    return parameters(base.model, base.folder)[0] - dropped
