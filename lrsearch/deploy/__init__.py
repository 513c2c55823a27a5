"""Compressed models → what a runtime executes: folding, channel flow, plain layers, ONNX."""
