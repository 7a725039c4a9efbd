"""Reports as pages: blocks of content, and their writers for HTML, Markdown and CSV."""
