"""What an adapter's files mean, decided without touching a file, a clock or a tensor."""
