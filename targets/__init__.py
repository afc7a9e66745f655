"""Where an exported network runs: Loihi (simulated) and ONNX Runtime."""
