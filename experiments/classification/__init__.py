"""What the experiments with classifiers share: images, spoiled images, methods, their peers, scores and tables."""
