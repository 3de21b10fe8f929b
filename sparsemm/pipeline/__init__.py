"""Run the stages of many models side by side: a worktree each, one writer of dvc.lock. Knows no orchestrator."""
