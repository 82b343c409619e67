"""The linearised deep image prior: against the closed form, on a phantom, on measured scans, and at 501 x 501."""
