"""Flower behind a gate: ``durable-flower``."""
