"""Transformers encoders: where their linears are, what their layers see, what their checkpoints hold."""

METHOD = "heat"  # by which Transformers knows factorized models, in config.json's quantization_config
