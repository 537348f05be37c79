"""From a float ONNX graph and images to a quantised graph: policy, ranges, smoothing, Q/DQ, and what it cost."""
