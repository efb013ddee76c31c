"""The scheduler's decisions: events in, instructions out; no clock, no chance, no I/O."""
