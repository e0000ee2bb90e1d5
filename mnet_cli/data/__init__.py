"""From a folder of photographs to batches of tensors."""
