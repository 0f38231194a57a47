"""Adapters beside shared weights: what their files mean and how they are applied."""
