"""A verdict to look at: one HTML file for everyone, and a figure for notebooks and papers."""
