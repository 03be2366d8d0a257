"""`redisq db`: the schema of PostgreSQL."""

import click

from jobs.commands.store import one_line
from jobs.database import latest_version, set_defaults, upgrade
from jobs.settings import JobSettings
from redisq.cli import say, show_lines


@click.group(epilog="Example: redisq db upgrade")
def db() -> None:
    """Keep the schema of PostgreSQL."""


@db.command("upgrade", epilog="Example: redisq db upgrade")
def upgrade_() -> None:
    """Apply the migrations that are missing, and give the services their rights. Doing it again is harmless."""
    settings = JobSettings.from_environment()
    with one_line(settings):
        applied = upgrade(settings.owner_url or settings.database_url, runtime=settings.runtime_role)
        set_defaults(settings.database_url)
    for name in applied:
        show_lines(name)
    say(f"the schema is at version {latest_version()}")
