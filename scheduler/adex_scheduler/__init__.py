"""The scheduler: fronts, text, the decisions of every step, and the links to the workers."""
