"""The report of a search evaluation: a page for the browser, its plots, and a table for the terminal."""
