"""Adapters on the worker: from an untrusted folder to bytes that a step may touch."""
