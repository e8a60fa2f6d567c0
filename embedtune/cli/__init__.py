"""The command line: a thin layer over the public functions. ``python -m embedtune`` is the same."""
