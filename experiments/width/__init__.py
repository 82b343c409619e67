"""The width of error bars that training data choose, on many small trained networks."""
