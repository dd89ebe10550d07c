"""Callers of other languages."""
