"""From a dense model and a request to a factorized model."""
