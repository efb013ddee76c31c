"""The scheduler on an injected clock: workloads, a modelled worker, and what else one might run.

Needs the extra `simulate` (numpy and matplotlib), which nothing that serves does.
"""
