"""Every solver on problems with known answers: `python -m benchmarks.solvers`, and `.eleven_million` beside it."""
