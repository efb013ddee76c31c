"""The base model: what it is (spec), its rotations (rope), its weights and its forward pass."""
