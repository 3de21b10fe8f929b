"""Accuracy against budget: local tasks run by lmms-eval through the compressed cache."""
