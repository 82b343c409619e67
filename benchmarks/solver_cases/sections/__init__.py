"""One file for each group of tables; each offers ``sections`` and, where there are targets, ``verdicts``."""
