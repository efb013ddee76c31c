"""The doors callers come in by: REST and gRPC over one schema layer."""
