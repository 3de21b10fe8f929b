"""Finds the method that suits one checkpoint, and proves it on pages that the search never saw."""
