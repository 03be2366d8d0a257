"""The roles of the tests' PostgreSQL: the services run as in production, with no right that they do not need."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import make_conninfo

from jobs.rights import READER, exists

SERVICES = "redisq_services"
_PASSWORD = "of-the-tests"


def create_roles(dsn: str) -> None:
    """Create the roles of the services and of a reader where they are missing."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for role in (SERVICES, READER):
            if exists(connection, role):
                continue
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{_PASSWORD}'".encode())


def as_role(role: str, dsn: str) -> str:
    """Return the address `dsn` as `role` opens it."""
    return make_conninfo(dsn, user=role, password=_PASSWORD)


def as_services(dsn: str) -> str:
    """Return the address `dsn` as the services and the commands open it."""
    return as_role(SERVICES, dsn)
