"""Chase: which heads look at the word that is being read, from one forward pass per batch."""
