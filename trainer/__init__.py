"""The loop, credit, losses, learners, weights, checkpoints, tracking, evaluation, reports."""
