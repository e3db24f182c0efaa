"""Evaluation at budgets: estimators, statistics, the code that serves."""
