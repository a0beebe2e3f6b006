"""The demo: compress a real sentence encoder and see what was gained."""
