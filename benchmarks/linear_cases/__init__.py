"""Parts of the benchmark of linear models."""
