"""Exit code 0 if the Hugging Face Hub answers, 1 if not."""

from __future__ import annotations

import os
import socket
import sys
from urllib.parse import urlsplit


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether a connection to the Hub (or to HF_ENDPOINT) can be opened; False in offline mode."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(0 if hub_reachable() else 1)
