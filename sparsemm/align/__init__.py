"""Aligns answer tokens with the words of a page: token -> characters -> word -> record entry."""
