"""Sharing: programs that load weights through safetensors and PyTorch get the broker's memory."""
