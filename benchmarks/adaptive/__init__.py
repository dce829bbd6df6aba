"""Adaptive solves beside those of torchdiffeq, torchode and scipy: what errors cost, and what tolerances promise."""
