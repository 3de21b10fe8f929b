"""Measures accuracy under methods and budgets: the evaluator, the evaluate stage, and the plug-in for lmms-eval."""
