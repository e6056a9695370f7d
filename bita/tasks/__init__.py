"""Tasks: batch to loss, batch to predictions, predictions to scores."""
