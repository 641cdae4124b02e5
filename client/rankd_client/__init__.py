"""The client of rankd."""
