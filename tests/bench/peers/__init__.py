"""One page for each peer: it runs in the peer's own environment and is spoken to by `tests.bench.program`."""
