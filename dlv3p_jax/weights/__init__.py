"""Weights from wherever a user has them, and a run's checkpoints."""
