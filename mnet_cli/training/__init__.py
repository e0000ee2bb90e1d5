"""Training: from a recipe to a run directory with the best checkpoint."""
