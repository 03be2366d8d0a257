"""The container images of the tests, made on the spot: no registry needs to be reachable."""
