"""The small checkpoints: their architectures and how they learn to read."""
