"""Run a script that prunes with onnxsim 0.8.1, in whose way some of onnxsim's own ports stand.

    PYTHON samples/onnxsim_driver.py RUN_ONNXSIM.py [--whole] ARGUMENTS ...

PYTHON has onnxsim, and needs nothing else of this repository. Three things are set right, each to onnxsim's advantage:

- ranking by norm is done by the original function, not by a port of it which declines layers that it takes;
- pruning by magnitude gives the weights new names and leaves the old ones behind, so that Adam finds nothing to train:
  the weights get their names back;
- with ``--whole``, Adam trains the whole network at once on the teacher's answers, whatever the mode. The script cuts
  networks with masks into blocks of two layers, which does worse.
"""

import runpy
import sys
from typing import Any

import onnxsim

prune_by_magnitude = onnxsim.apply_magnitude_pruning
train_blocks = onnxsim.apply_block_finetune_all_blocks


def magnitude(model: Any, **options: Any) -> Any:
    """Prune by magnitude, under the old names."""
    pruned = prune_by_magnitude(model, **options)
    before = {node.output[0]: node.input for node in model.graph.node}
    old = {
        new: name
        for node in pruned.graph.node
        for new, name in zip(node.input, before.get(node.output[0], ()), strict=False)
        if new != name
    }
    left = [place for place, tensor in enumerate(pruned.graph.initializer) if tensor.name in old.values()]
    for place in reversed(left):
        del pruned.graph.initializer[place]
    for tensor in pruned.graph.initializer:
        tensor.name = old.get(tensor.name, tensor.name)
    for node in pruned.graph.node:
        node.input[:] = [old.get(name, name) for name in node.input]
    return pruned


def train_whole(*models: Any, **options: Any) -> Any:
    """Adam with all layers in one block."""
    return train_blocks(*models, **{**options, "max_layers_per_block": 10**6})


onnxsim.apply_structured_pruning_cpp = onnxsim.apply_structured_pruning
onnxsim.apply_magnitude_pruning = magnitude
if "--whole" in sys.argv:
    sys.argv.remove("--whole")
    onnxsim.apply_block_finetune_all_blocks = train_whole
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
