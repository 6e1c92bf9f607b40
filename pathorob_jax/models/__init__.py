"""Encoders: registry of names, Flax networks, and preprocessing on the device."""
