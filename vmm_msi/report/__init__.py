"""Compare results in words: table and JSON."""
