"""Which tokens may come next in a text that must belong to a grammar."""
