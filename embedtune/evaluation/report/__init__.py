"""A verdict as a self-contained HTML file, and as a figure."""
