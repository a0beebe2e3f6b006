"""Benchmarks: scripts anyone can re-run, and the results they wrote."""
