"""The command line and what it runs; needs the extra ``sampla[apps]``."""
