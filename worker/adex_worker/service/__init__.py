"""The worker's gRPC side: the server, one Run stream at a time, and the adapter commands on it."""
