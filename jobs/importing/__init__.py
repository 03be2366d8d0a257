"""Imports files that people export from a provider, and refuses a file that could be read in two ways."""
