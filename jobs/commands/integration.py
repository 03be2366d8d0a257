"""`redisq integration`: the pages that are read every day, and their tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from jobs import integrations
from jobs.app import Application
from jobs.commands.store import connected
from jobs.integrations import Integration
from jobs.vault import Vault
from redisq import protect, redact
from redisq.cli import JSON_OPTION, Exit, Failed, page_note, say, show_document, show_table

_TOKEN_FILE = click.option(
    "--token-file", type=click.File("r"), default="-", metavar="FILE", help="Read the token there, not from stdin."
)


@click.group(epilog="Example: redisq integration list")
def integration() -> None:
    """Keep the pages that are read every day. A token comes from stdin or a file, never from the command line."""


@integration.command(epilog="Example: redisq integration add --org acme --integration fb-1 --page 11223344 < token")
@click.option("--org", "organization_id", required=True, metavar="ORG", help="The organization; a new one is made.")
@click.option("--integration", "integration_id", required=True, metavar="ID", help="How we call the page.")
@click.option("--page", "page_id", required=True, metavar="PAGE", help="How the provider calls it.")
@click.option("--provider", default="facebook", show_default=True, help="Where its numbers come from.")
@click.option("--name", default="", help="For people.")
@_TOKEN_FILE
def add(token_file: TextIO, **page: str) -> None:
    """Connect a page. Ends with 4 when it is connected already. The provider `csv` needs no token."""
    application = Application()
    vault, token = application.vault, "-" if page["provider"] == "csv" else _read_token(token_file)
    with connected(application.job_settings) as connection, _as_usage():
        added = integrations.add(connection, vault, token=token, **page)
    if not added:
        names = f"{page['integration_id']}, or page {page['page_id']} of {page['organization_id']},"
        raise Failed(f"{names} is connected already", Exit.EXISTS)
    say(f"connected {page['integration_id']}")


@integration.command("list", epilog="Example: redisq integration list --org acme")
@click.option("--org", "organization_id", metavar="ORG", help="Only those of one organization.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="How many.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Begin after so many.")
@JSON_OPTION
def list_(organization_id: str | None, limit: int, offset: int, as_json: bool) -> None:
    """List the pages, and why one is not read."""
    with connected(Application().job_settings) as connection:
        total = integrations.count_all(connection, organization_id)
        found = integrations.list_all(connection, organization_id, start=offset, count=limit)
    pages = [_page(each) for each in found]
    if as_json:
        show_document({"total": total, "offset": offset, "integrations": pages})
        return
    columns = ("organization", "integration", "provider", "page", "state", "reason", "name")
    show_table(columns, [list(page.values()) for page in pages])
    again = "redisq integration list" + (f" --org {redact(organization_id)}" if organization_id else "")
    page_note(len(pages), offset, total, f"{again} --limit {limit}")


@integration.command(epilog="Example: redisq integration disable fb-1")
@click.argument("integration_id", metavar="ID")
def disable(integration_id: str) -> None:
    """Stop reading the page ID. `reconnect` reads it again."""
    with connected(Application().job_settings) as connection:
        if not integrations.disable(connection, integration_id):
            raise _unknown(integration_id)
    say(f"disabled {integration_id}")


@integration.command(epilog="Example: redisq integration reconnect fb-1 --token-file token")
@click.argument("integration_id", metavar="ID")
@_TOKEN_FILE
def reconnect(integration_id: str, token_file: TextIO) -> None:
    """Store a fresh token for the page ID, and run again what failed or was skipped."""
    application = Application()
    vault, token = application.vault, _read_token(token_file)
    max_age = application.job_settings.max_age_days
    with connected(application.job_settings) as connection, _as_usage():
        found = integrations.reconnect(connection, vault, integration_id, token, max_age_days=max_age)
    if found is None:
        raise _unknown(integration_id)
    requeued = 0
    for day, queue in found.dead:
        requeued += application.queue(queue).requeue([f"ingest:{integration_id}:{day}"]).count(1)
    say(f"reconnected {integration_id}: {found.reopened} days are expected again, {requeued} dead letters run again")


@integration.command("rotate-tokens", epilog="Example: redisq integration rotate-tokens")
def rotate_tokens() -> None:
    """Encrypt every stored token under the first key of the key file, so that older keys can go."""
    application = Application()
    vault = application.vault
    with connected(application.job_settings) as connection:
        count = integrations.rotate_tokens(connection, vault)
    say(f"encrypted {count} tokens anew")


@integration.command("new-key", epilog="Example: redisq integration new-key > token-key")
def new_key() -> None:
    """Print a fresh key, one line of the key file."""
    click.echo(Vault.new_key())


def _read_token(file: TextIO) -> str:
    token = str(click.prompt("Token", hide_input=True, err=True) if file.isatty() else file.read()).strip()
    protect(token)
    return token


@contextmanager
def _as_usage() -> Iterator[None]:
    """Answer a value that cannot be right as a wrongly typed command."""
    try:
        yield
    except ValueError as error:
        raise Failed(redact(str(error)), Exit.USAGE) from None


def _unknown(integration_id: str) -> Failed:
    return Failed(f"no integration {redact(integration_id)!r}", Exit.NOT_FOUND)


def _page(found: Integration) -> dict[str, str | None]:
    return {
        "organizationId": found.organization_id,
        "integrationId": found.id,
        "provider": found.provider,
        "page": found.internal_id,
        "state": found.why_not() or "active",
        "reason": found.refresh_reason if found.refresh_needed else None,
        "name": found.name,
    }
