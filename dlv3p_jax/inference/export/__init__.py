"""Trained models as files that run without this program: StableHLO, TensorFlow's SavedModel, ONNX."""
