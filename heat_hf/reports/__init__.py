"""What was found, as text, pages, cards and figures: data in, nothing computed."""
