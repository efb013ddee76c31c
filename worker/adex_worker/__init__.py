"""Holds the base model, its KV cache and the adapters, and carries out steps."""
