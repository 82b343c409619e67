"""`sampla demo`: train a small network, give it error bars, and compare the two on data it has not seen."""

from sampla.apps.demo.run import Settings, load_data, run_demo

__all__ = ["Settings", "load_data", "run_demo"]
