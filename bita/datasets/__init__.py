"""Caption datasets: preparation, records, loaders."""
