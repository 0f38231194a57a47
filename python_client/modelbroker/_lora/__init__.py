"""Adapters over shared weights: what their files mean and how they are applied."""
