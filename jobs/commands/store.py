"""The database as a command uses it: one connection, and every error in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection

from jobs.database import SchemaError, connect, is_away, is_held_up, is_read_only
from jobs.settings import JobSettings
from jobs.vault import VaultError
from redisq import redact
from redisq.cli import Exit, Failed


@contextmanager
def connected(settings: JobSettings) -> Iterator[Connection[Any]]:
    """Yield a connection that commits each statement by itself. Raise `Failed`."""
    with one_line(settings), connect(settings.database_url) as connection:
        yield connection


@contextmanager
def one_line(settings: JobSettings) -> Iterator[None]:
    """Turn what PostgreSQL, the schema and the vault report into `Failed`, without secrets."""
    address = settings.database_address
    try:
        yield
    except psycopg.Error as error:
        raise _failed(error, address) from None
    except UnicodeEncodeError:  # an argument has bytes that cannot be sent to PostgreSQL
        raise Failed("an argument is not UTF-8 text", Exit.USAGE) from None
    except (SchemaError, VaultError) as error:
        raise Failed(redact(str(error))) from None


def _failed(error: psycopg.Error, address: str) -> Failed:
    cause = _cause(error)
    if is_read_only(error):
        what = f"postgresql at {address} takes no writes ({cause}): point REDISQ_DATABASE_URL at the primary"
        return Failed(what, Exit.UNREACHABLE)
    if is_held_up(error):
        return Failed(f"postgresql at {address} is held up by others: {cause}; repeat in a moment", Exit.UNREACHABLE)
    if is_away(error):
        return Failed(f"cannot reach postgresql at {address}: {cause}", Exit.UNREACHABLE)
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return Failed(f"postgresql at {address} lacks this release's schema: run `redisq db upgrade`")
    return Failed(f"postgresql at {address} refuses: {cause}")


def _cause(error: psycopg.Error) -> str:
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])
