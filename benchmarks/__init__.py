"""The same work done by others, beside ours: `python -m benchmarks.compare` and `python -m benchmarks.input`."""
