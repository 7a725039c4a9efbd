"""Build what the lab runs: Debian roots, a kernel, a user land, cached by content."""
