"""What experiments and benchmarks share: the store, the page, fresh processes, images, networks, training, scores."""
