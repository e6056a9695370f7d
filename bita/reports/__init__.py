"""What a person looks at: the report of an evaluation, plots."""
