"""The roles of the tests' PostgreSQL: the services run as in production, with no right that they do not need."""

from __future__ import annotations

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from jobs.rights import OWNER, READER, exists

SERVICES = "redisq_services"
OWNER_PASSWORD = "canary-owner"
_PASSWORD = "of-the-tests"


def create_roles(dsn: str) -> None:
    """Create the roles of the services and of a reader where they are missing."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for role in (SERVICES, READER):
            if exists(connection, role):
                continue
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{_PASSWORD}'".encode())


def create_owner(dsn: str) -> None:
    """Create the roles and an owner of the schema, and make the database its own."""
    create_roles(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        if not exists(connection, OWNER):
            connection.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{OWNER_PASSWORD}'".encode())
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, sql.Identifier(OWNER)))


def as_owner(dsn: str) -> str:
    """Return the address `dsn` as the owner of its schema opens it."""
    return make_conninfo(dsn, user=OWNER, password=OWNER_PASSWORD)


def as_role(role: str, dsn: str) -> str:
    """Return the address `dsn` as `role` opens it."""
    return make_conninfo(dsn, user=role, password=_PASSWORD)


def as_services(dsn: str) -> str:
    """Return the address `dsn` as the services and the commands open it."""
    return as_role(SERVICES, dsn)
