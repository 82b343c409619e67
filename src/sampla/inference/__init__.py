"""From features, likelihood, prior and data to posterior samples: one loop for the evidence, two E-steps."""
