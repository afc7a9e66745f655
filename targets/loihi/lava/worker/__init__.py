"""Runs inside the Lava environment, started as ``python -m worker``; imports Lava and NumPy, never spikeport."""
