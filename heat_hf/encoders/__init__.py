"""Transformers encoders: where their linears are, what their layers see, what their checkpoints hold."""
