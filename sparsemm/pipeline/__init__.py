"""Runs the stages of many models in parallel: each in its own worktree, with one writer of dvc.lock.

It depends on no orchestrator.
"""
