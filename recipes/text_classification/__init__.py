"""The recipe for text classification."""
