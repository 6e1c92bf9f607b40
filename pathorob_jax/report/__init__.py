"""Report of the results on disk: one HTML page, CSV tables and figures.

This is the only subpackage that imports matplotlib and jinja2.
"""
