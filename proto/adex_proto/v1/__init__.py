"""Generated messages and stubs; regenerate with `make protos`, never edit."""
