"""One benchmark file per operator."""
