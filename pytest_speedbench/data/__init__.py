"""The data stage: rows, datasets, selection, ISL buckets and the bundled mini set."""
