"""Plug-ins into the libraries people already use."""
