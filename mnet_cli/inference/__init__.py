"""A trained classifier at work: predictions, scores and timing."""
