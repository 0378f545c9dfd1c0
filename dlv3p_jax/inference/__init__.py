"""A trained model at work: the Segmenter, `predict`, the demo, exports."""
