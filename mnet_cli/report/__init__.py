"""Pages and pictures made from result objects."""
