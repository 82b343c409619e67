"""`sampla ct`: a reconstruction with error bars, from a sinogram to a report."""

from sampla.apps.ct.data import Scan, adjusted, demo_scan, from_counts, read_scan
from sampla.apps.ct.run import Result, Settings, reconstruct, run_ct

__all__ = ["Result", "Scan", "Settings", "adjusted", "demo_scan", "from_counts", "read_scan", "reconstruct", "run_ct"]
