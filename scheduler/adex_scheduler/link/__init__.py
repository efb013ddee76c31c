"""The scheduler's end of the connections to its workers."""
