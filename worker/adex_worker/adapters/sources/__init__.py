"""The places adapters come from."""
