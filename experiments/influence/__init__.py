"""Influence of training data on predictions, against networks that were trained without them."""
