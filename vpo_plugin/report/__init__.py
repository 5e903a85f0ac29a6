"""The report of a search evaluation: one page to open in a browser, its plots, and the table of the terminal."""
