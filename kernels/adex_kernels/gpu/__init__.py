"""The device math in Triton: for a GPU, and in its interpreter for the tests of a CPU."""
