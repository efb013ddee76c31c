"""Device math: tensors in, tensors out, and nothing else."""
