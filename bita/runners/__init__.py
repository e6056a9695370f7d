"""Runners: the training loop and its checkpoints."""
