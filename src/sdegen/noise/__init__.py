"""Noise as a pure function of sample seeds: unit normals, white noise, Brownian paths."""

from sdegen.noise.brownian import Brownian
from sdegen.noise.normals import NoiseSource, White, Word, Words, halves, normals, philox, seeds

__all__ = ["Brownian", "NoiseSource", "White", "Word", "Words", "halves", "normals", "philox", "seeds"]
