"""Checkpoints on disk and on the Hub: read, written and pushed whole or not at all."""
