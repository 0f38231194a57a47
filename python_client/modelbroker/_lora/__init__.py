"""Adapters beside shared weights; the door is modelbroker.lora."""
