"""Activations at the frozen boundary, computed once and kept on disk."""
