"""Measurements that the docs quote, one program each. Not part of the wheel."""
