"""Encoders: what a name stands for, the Flax networks, and preprocessing on the device."""
