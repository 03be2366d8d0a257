"""Chaos: real processes, faults drawn from a seed, and an auditor that shares no code with the queue."""
