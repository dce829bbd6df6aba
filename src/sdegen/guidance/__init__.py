"""Guidance: maps from a model to a model."""

from sdegen.guidance.thresholds import EditedModel, dynamic_threshold, map_data, static_threshold

__all__ = ["EditedModel", "dynamic_threshold", "map_data", "static_threshold"]
