"""Somebody else's application."""
