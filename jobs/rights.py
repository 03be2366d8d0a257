"""What each role may do in the database: the services and the commands no more than they do, a reader nothing but read.

The owner of the schema has every right, and only `redisq db upgrade` is the owner.
"""

from typing import Any

from psycopg import Connection, sql

OWNER = "redisq_owner"  # when it has a password of its own
READER = "redisq_reader"  # granted when there is such a role, for a monitor or a report

# Of the services and commands. What is read on the way of an UPDATE, a DELETE or a conflict needs SELECT.
RUNTIME = {
    "schema_migrations": "SELECT",
    "organization": "SELECT, INSERT",
    "integration": "SELECT, INSERT, UPDATE",
    "metric_catalog": "SELECT",
    "metric_refusal": "SELECT, INSERT, UPDATE, DELETE",
    "metric_life": "SELECT, INSERT, UPDATE",
    "page_load": "SELECT, INSERT, UPDATE",
    "import_file": "SELECT, INSERT, UPDATE",
    "ingest_day_state": "SELECT, INSERT, UPDATE",
    "page_metric_daily": "SELECT, INSERT, UPDATE",
    "page_metric_history": "SELECT, INSERT",
    "page_metric_anomaly": "SELECT, INSERT",
    "org_metric_daily": "SELECT, INSERT, UPDATE, DELETE",
    "aggregate_dirty": "SELECT, INSERT, DELETE",
    "provider_gate": "SELECT, INSERT, UPDATE",
    "provider_refusal": "SELECT, INSERT, UPDATE, DELETE",
    "provider_incident": "SELECT, INSERT, UPDATE",
}

# Encrypted as they are, the tokens are nobody's to read.
_READABLE_OF_INTEGRATION = (
    "SELECT (id, organization_id, provider, internal_id, name, zone, user_id, disabled, in_between_steps,"
    " refresh_needed, refresh_reason, refresh_day, created_at, read_since, updated_at, deleted_at)"
)


def grant(connection: Connection[Any], runtime: str) -> None:
    """Give the role `runtime`, and `READER` when there is one, exactly their rights; those of before are taken back.

    Nobody else but the owner and superusers can connect to the database afterwards, unless it is granted by name.
    """
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as it is since PostgreSQL 15
    database = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(database))
    roles = [runtime, READER] if exists(connection, READER) else [runtime]
    for role in roles:
        name = sql.Identifier(role)
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(database, name))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, name))
    _give(connection, runtime, RUNTIME)
    if READER in roles:
        _give(connection, READER, dict.fromkeys(RUNTIME, "SELECT") | {"integration": _READABLE_OF_INTEGRATION})


def exists(connection: Connection[Any], role: str) -> bool:
    """Tell whether there is such a role."""
    return bool(connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone())


def _give(connection: Connection[Any], role: str, rights: dict[str, str]) -> None:
    name = sql.Identifier(role)
    with connection.transaction():
        connection.execute(sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(name))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(name))
        for table, right in rights.items():
            connection.execute(
                sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(right), sql.Identifier("public", table), name)
            )
