"""The commands of ``durable-admin``."""
