"""Faults against an installed host under load, and a ledger that tells what became of every accepted task."""
