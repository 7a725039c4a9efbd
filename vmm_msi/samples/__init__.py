"""Sample hosts, guests and scenarios that ship with the package."""
