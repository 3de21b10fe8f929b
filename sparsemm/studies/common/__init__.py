"""What several studies share. An edit here makes every study that asks a model run again."""
