"""Tie answer tokens to the page: token -> characters -> word -> record entry."""
