"""The recipe for question answering."""
