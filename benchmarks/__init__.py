"""What sampla costs: its engine, its solvers, its linear models."""
