"""A world in one process to try the scheduler in: no network, no clock, one seed."""
