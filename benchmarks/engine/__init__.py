"""The cost of a product with M: `python -m benchmarks.engine`, `benchmarks.engine.vocabulary`, `.allocator`."""
