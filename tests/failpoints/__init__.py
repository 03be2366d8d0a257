"""Strikes a process at every named point around its calls to Redis and PostgreSQL; see the README beside this."""
