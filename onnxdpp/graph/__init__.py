"""The half that knows ONNX, and never SciPy: files, layers, calibration, rewriting."""
