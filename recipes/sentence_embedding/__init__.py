"""The recipe for sentence embedding."""
