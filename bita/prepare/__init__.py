"""From published files to ours, verified: sources, forms, archives, cards."""
