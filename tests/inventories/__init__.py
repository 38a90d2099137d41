"""Inventories made from the argument specs."""
