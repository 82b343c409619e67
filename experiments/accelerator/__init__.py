"""One command that shows on an accelerator what a CPU cannot: stages, most valuable first, each with what it takes."""

from time import perf_counter

START = perf_counter()
"""Before anything slow is imported: a budget counts from here."""
