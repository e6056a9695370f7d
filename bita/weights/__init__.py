"""Files of weights: reading them, their layouts, loading them into a model."""
