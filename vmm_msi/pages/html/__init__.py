"""Templates, style and script of HTML pages."""
