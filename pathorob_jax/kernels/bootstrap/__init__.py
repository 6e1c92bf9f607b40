"""Draws of whole groups of rows, and the intervals made of them."""
