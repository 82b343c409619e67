"""The parts of benchmarks/solvers.py: problems with known answers, contestants, measurements, words."""
