"""Programs, with one objective per test."""
