"""Code that several studies share. An edit here makes every study that runs a model stale."""
