"""Calibration and evaluation data: every source becomes the same record."""
