"""Asks a model questions under methods and budgets: the evaluator, its stage, and the plug-in of lmms-eval."""
