"""Large linear models beside scikit-learn's: `python -m benchmarks.linear`."""
