"""What sampla gives on data, beside its peers: `python -m experiments.classification.mnist --root DIR`, and so on."""
