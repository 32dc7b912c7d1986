"""The numeric half: arrays in, arrays out, and never ONNX."""
