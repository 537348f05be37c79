"""From a PyTorch model to an ONNX graph: the wrapper, the one exporter call, small graph passes, inspection."""
