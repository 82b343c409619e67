"""Linear models on the UCI sets, and their simulation-based calibration."""
