"""Results on disk as one page, tables and figures for people.

This is the only wing that imports matplotlib and jinja2.
"""
