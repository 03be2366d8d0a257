"""The application's own commands, and what it has to say to those of the core."""
