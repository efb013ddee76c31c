"""One step from plan to outcome: sequences, inputs, forward pass, sampling."""
