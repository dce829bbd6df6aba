"""Guidance: maps from a model to a model."""

from sdegen.guidance.thresholds import EditedModel, dynamic_threshold, map_data, static_threshold
from sdegen.scores.maps import ModelMap

__all__ = ["EditedModel", "ModelMap", "dynamic_threshold", "map_data", "static_threshold"]
