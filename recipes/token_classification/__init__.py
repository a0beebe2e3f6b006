"""The recipe for token classification."""
