"""A model in another version of the ONNX operators, as onnx's own converter writes it."""

import onnx
from onnx import ModelProto, helper, version_converter

from onnxdpp.errors import ModelError, UsageError
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.external import has_external_data
from onnxdpp.graph.index import ONNX_DOMAINS


def converted(model: ModelProto, opset: int) -> ModelProto:
    """The model with its main operators of version `opset`.

    Parameters
    ----------
    model : ModelProto
        Not changed.
    opset : int
        At least the version that the model has.

    Raises
    ------
    UsageError
        If `opset` is none, or older than the model's.
    ModelError
        If the converter cannot do it; it knows neither functions nor external data.
    """
    now = next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), 0)
    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not now <= opset <= newest:
        raise UsageError(f"opset is {opset!r}; it can be {now}, as the model has, to {newest}.")
    told = f"The model cannot be converted to opset {opset}"
    if has_external_data(model) or model.functions:
        what = "external data" if has_external_data(model) else "functions"
        raise ModelError(f"{told}: the converter of onnx does not know {what}. Export it anew.")
    try:
        result = version_converter.convert_version(model, opset)
    except Exception as error:  # protobuf's, and what its C++ half raises
        raise ModelError(f"{told}: {' '.join(str(error).split())[:300]}") from error
    if result.ir_version < 4:  # since then, an initializer among the inputs is one that callers may override
        constants = {tensor.name for tensor in result.graph.initializer}
        for value in [value for value in result.graph.input if value.name in constants]:
            result.graph.input.remove(value)
        result.ir_version = helper.find_min_ir_version_for(result.opset_import)
    if not result.metadata_props:
        result.metadata_props.extend(model.metadata_props)
    check_model(result, f"converted to opset {opset}")
    return result
