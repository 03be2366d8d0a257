"""`redisq integration`: the pages that are read every day, and their tokens."""

import datetime as dt
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import click

from jobs import integrations, organizations
from jobs.app import Application
from jobs.commands.store import connected
from jobs.integrations import Facts, Integration, Moved
from jobs.providers.base import Load
from jobs.providers.csvfiles import CsvProvider
from jobs.providers.facebook import FacebookProvider
from jobs.vault import Vault, checked_token
from redisq import protect, redact
from redisq.cli import JSON_OPTION, Exit, Failed, page_note, say, show_document, show_table

_TOKEN_FILE = click.option(
    "--token-file", type=click.File("rb"), default="-", metavar="FILE", help="Read the token there, not from stdin."
)


@click.group(epilog="Example: redisq integration list")
def integration() -> None:
    """Keep the pages that are read every day. A token comes from stdin or a file, never from the command line."""


@integration.command(epilog="Example: redisq integration add --org acme --integration fb-1 --page 11223344 < token")
@click.option("--org", "organization_id", required=True, metavar="ORG", help="The organization; a new one is made.")
@click.option("--integration", "integration_id", required=True, metavar="ID", help="How we call the page.")
@click.option("--page", "page_id", required=True, metavar="PAGE", help="How the provider calls it.")
@click.option(
    "--provider",
    default="facebook",
    show_default=True,
    help="Where its numbers come from: facebook; csv (a file for each page); import (only `redisq import`).",
)
@click.option("--name", default="", help="For people.")
@click.option("--zone", metavar="ZONE", help="Time zone of a csv or import page, like Europe/Berlin.  [default: UTC]")
@click.option("--user", metavar="USER", help="The person or group whose allowance pays for the calls.")
@_TOKEN_FILE
def add(token_file: BinaryIO, provider: str, page_id: str, zone: str | None, user: str | None, **page: str) -> None:
    """Connect a page. Ends with 4 when it is connected already. The providers csv and import need no token.

    A page that was removed comes back, with its numbers, under the id that it had.
    """
    application = Application()
    with _as_usage():  # must come before the person is asked for a token
        check_page_id(provider, page_id)
        zone = integrations.zone_of(provider, zone) if zone else None
    vault = application.vault
    with connected(application.job_settings) as connection, _as_usage():
        integrations.check(connection, provider=provider, page_id=page_id, user=user, **page)
        ids = page["organization_id"], page["integration_id"], page_id
        may_be_new = not integrations.is_connected(connection, *ids)
    with _as_usage():
        token = "-" if provider in _WITHOUT_TOKEN or not may_be_new else _read_token(token_file)
    with connected(application.job_settings) as connection, _as_usage():
        added = may_be_new and integrations.add(
            connection, vault, provider=provider, page_id=page_id, token=token, zone=zone, user=user, **page
        )
        before = None if added else integrations.removed_as(connection, page["organization_id"], page_id)
    if not added:
        names = f"{page['integration_id']}, or page {page_id} of {page['organization_id']},"
        again = f"; it was removed as {before}: add it under that id" if before else ""
        raise Failed(redact(f"{names} is connected already{again}"), Exit.EXISTS)
    its_days = f"its days are of {integrations.zone_of(provider, zone)}"
    another = "" if zone or provider in integrations.FIXED_ZONES else " (--zone names another)"
    say(f"connected {page['integration_id']}; {its_days}{another}")


_LARGEST_FILE = 1_000_000  # bytes: a larger one is no token
_CUT = ("name", "zone")  # columns of the list that give way on a narrow terminal
_WITHOUT_TOKEN = ("csv", "import")
_CHECKS: Mapping[str, Callable[[str], None]] = {
    "facebook": FacebookProvider.check_page_id,
    "csv": CsvProvider.check_page_id,
}


def check_page_id(provider: str, page_id: str) -> None:
    """Raise `ValueError` if the provider cannot have a page with this id. Its text is for people. Makes no call."""
    if check := _CHECKS.get(provider):
        check(page_id)


@integration.command("list", epilog="Example: redisq integration list --org acme")
@click.option("--org", "organization_id", metavar="ORG", help="Only those of one organization.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="How many.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Begin after so many.")
@JSON_OPTION
def list_(organization_id: str | None, limit: int, offset: int, as_json: bool) -> None:
    """List the pages, and why one is not read."""
    with connected(Application().job_settings) as connection:
        total = integrations.count_all(connection, organization_id)
        if organization_id and not total and not organizations.exists(connection, organization_id):
            raise _no_organization(organization_id)
        found = integrations.list_all(connection, organization_id, start=offset, count=limit)
    pages = [_page(each) for each in found]
    if as_json:
        show_document({"total": total, "offset": offset, "integrations": pages})
        return
    _show_pages(found, organization_id)
    again = "redisq integration list" + (f" --org {redact(organization_id)}" if organization_id else "")
    page_note(len(pages), offset, total, f"{again} --limit {limit}")


@integration.command(epilog="Example: redisq integration show fb-1")
@click.argument("integration_id", metavar="ID")
@JSON_OPTION
def show(integration_id: str, as_json: bool) -> None:
    """Show everything that is known of the page ID. Works for removed pages, too."""
    with connected(Application().job_settings) as connection:
        found, facts = integrations.find(connection, integration_id), integrations.facts(connection, integration_id)
    if found is None or facts is None:
        raise _unknown(integration_id)
    if as_json:
        show_document(_page(found) | _facts(found, facts))
    else:
        show_table(("fact", "value"), _lines(found, facts))


@integration.command(epilog="Example: redisq integration disable fb-1")
@click.argument("integration_id", metavar="ID")
def disable(integration_id: str) -> None:
    """Stop reading the page ID. Its numbers stay. `enable` reads it again."""
    with connected(Application().job_settings) as connection:
        if not integrations.disable(connection, integration_id):
            raise _unknown(integration_id)
    say(f"disabled {integration_id}")


@integration.command(epilog="Example: redisq integration enable fb-1")
@click.argument("integration_id", metavar="ID")
def enable(integration_id: str) -> None:
    """Read the page ID again from now on. Days that were skipped while it was disabled are read, too."""
    settings = Application().job_settings
    with connected(settings) as connection:
        enabled = integrations.enable(connection, integration_id, max_age_days=settings.max_age_days)
    if enabled is None:
        raise _unknown(integration_id)
    if enabled.refresh_reason:
        say(
            f"enabled {integration_id}, which waits for its owner ({redact(enabled.refresh_reason)}):"
            f" connect it with `redisq integration reconnect {integration_id}`"
        )
        return
    again = f"{_days(enabled.reopened)} {'is' if enabled.reopened == 1 else 'are'} expected again"
    say(f"enabled {integration_id}: {again}; `redisq backfill` reads any other day")


@integration.command(epilog="Example: redisq integration move fb-1 --to globex")
@click.argument("integration_id", metavar="ID")
@click.option("--to", "organization_id", required=True, metavar="ORG", help="The organization, which must exist.")
def move(integration_id: str, organization_id: str) -> None:
    """Move the page ID to another organization.

    Days from now on belong to the new organization. Earlier days stay with the old one. Ends with 4 when the new
    organization has the page already.
    """
    with connected(Application().job_settings) as connection:
        moved = integrations.move(connection, integration_id, organization_id)
    to = redact(organization_id)
    match moved:
        case Moved(before, days):
            stay = f"{_days(days)} until now {'stays' if days == 1 else 'stay'} with {before}"
            say(f"moved {integration_id} to {to}: {stay}, and each day from now on is of {to}")
        case "no_organization":
            raise _no_organization(organization_id)
        case "has_it":
            raise Failed(f"organization {to!r} has this page already", Exit.EXISTS)
        case "no_page":
            raise _unknown(integration_id)


@integration.command(epilog='Example: redisq integration rename fb-1 "Our shop in Berlin"')
@click.argument("integration_id", metavar="ID")
@click.argument("name")
def rename(integration_id: str, name: str) -> None:
    """Change the name that is shown for the page ID. The id never changes."""
    with connected(Application().job_settings) as connection, _as_usage():
        if not integrations.rename(connection, integration_id, name):
            raise _unknown(integration_id)
    say(f"{integration_id} is called {redact(name)!r}")


@integration.command(epilog="Example: redisq integration remove fb-1 --yes")
@click.argument("integration_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Remove without asking.")
def remove(integration_id: str, yes: bool) -> None:
    """Remove the page ID. It is not read any more. Its numbers stay, and they stay in the sums."""
    with connected(Application().job_settings) as connection:
        facts = integrations.facts(connection, integration_id)
        if facts is None or facts.deleted_at:
            raise _unknown(integration_id)
        outcome = f"it is not read any more; its numbers of {_days(facts.numbers)} stay"
        if not yes:
            _ask(f"Remove {integration_id}? Then {outcome}.")
        if not integrations.remove(connection, integration_id):
            raise _unknown(integration_id)
    say(f"removed {integration_id}: {outcome}")


@integration.command(epilog="Example: redisq integration reconnect fb-1 --token-file token")
@click.argument("integration_id", metavar="ID")
@_TOKEN_FILE
def reconnect(integration_id: str, token_file: BinaryIO) -> None:
    """Store a fresh token for the page ID. What failed or was skipped is run again."""
    application = Application()
    vault = application.vault
    with _as_usage():
        token = _read_token(token_file)
    max_age = application.job_settings.max_age_days
    with connected(application.job_settings) as connection, _as_usage():
        found = integrations.reconnect(connection, vault, integration_id, token, max_age_days=max_age)
    if found is None:
        raise _unknown(integration_id)
    requeued = 0
    for day, queue in found.dead:
        requeued += application.queue(queue).requeue([f"ingest:{integration_id}:{day}"]).count(1)
    expected = f"{_days(found.reopened)} {'is' if found.reopened == 1 else 'are'} expected again"
    letters = "1 dead letter runs again" if requeued == 1 else f"{requeued} dead letters run again"
    say(f"reconnected {integration_id}: {expected}, {letters}")


@integration.command("rotate-tokens", epilog="Example: redisq integration rotate-tokens")
def rotate_tokens() -> None:
    """Encrypt every stored token anew, bound to its page. The first key of the key file does it: older keys can go.

    A release that does not bind tokens cannot open them afterwards.
    """
    application = Application()
    vault = application.vault
    with connected(application.job_settings) as connection:
        count = integrations.rotate_tokens(connection, vault)
    say(f"encrypted {count} {'token' if count == 1 else 'tokens'} anew")


@integration.command("new-key", epilog="Example: redisq integration new-key > token-key")
def new_key() -> None:
    """Print a fresh key, one line of the key file."""
    click.echo(Vault.new_key())


def _read_token(file: BinaryIO) -> str:
    """Return the token that a file, a pipe or the person at the terminal gives. Raise `ValueError`."""
    given = click.prompt("Token", hide_input=True, err=True) if file.isatty() else file.read(_LARGEST_FILE)
    for line in (given if isinstance(given, str) else given.decode(errors="replace")).splitlines():
        protect(line.strip())
    return checked_token(given)


@contextmanager
def _as_usage() -> Iterator[None]:
    """Answer a value that cannot be right as a wrongly typed command."""
    try:
        yield
    except ValueError as error:
        raise Failed(redact(str(error)), Exit.USAGE) from None


def _ask(question: str) -> None:
    """Ask the person, and end the command unless the answer is yes."""
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can answer here: --yes does it without asking")
    click.confirm(question, abort=True, err=True)


def _unknown(integration_id: str) -> Failed:
    return Failed(f"no integration {redact(integration_id)!r}: see `redisq integration list`", Exit.NOT_FOUND)


def _no_organization(organization_id: str) -> Failed:
    return Failed(f"no organization {redact(organization_id)!r}: see `redisq org list`", Exit.NOT_FOUND)


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count} days"


def _page(found: Integration) -> dict[str, str | None]:
    return {
        "organizationId": found.organization_id,
        "integrationId": found.id,
        "provider": found.provider,
        "page": found.internal_id,
        "zone": found.zone,
        "user": found.user_id,
        "state": found.why_not() or "active",
        "reason": found.refresh_reason if found.refresh_needed else None,
        "name": found.name,
    }


def _state(found: Integration) -> str:
    page = _page(found)
    return ", ".join(part for part in (page["state"], page["reason"]) if part)


def _state_in_a_list(found: Integration) -> str:
    """Return the state in few letters. A reason to connect the page again says that it must be."""
    page = _page(found)
    return page["reason"] if page["state"] == "refresh_needed" and page["reason"] else _state(found)


def _show_pages(found: Sequence[Integration], organization_id: str | None) -> None:
    """Print a line for each page. 80 columns are few, so what all lines would share is not a column."""
    zones = {page.zone for page in found}
    has_names = any(page.name for page in found)
    columns = {
        "org": None if organization_id else [page.organization_id for page in found],
        "integration": [page.id for page in found],
        "provider": [page.provider for page in found],
        "page": [page.internal_id for page in found],
        "zone": [page.zone for page in found] if len(zones) > 1 else None,
        "name": [page.name or "-" for page in found] if has_names else None,
        "state": [_state_in_a_list(page) for page in found],
    }
    shown = {title: cells for title, cells in columns.items() if cells is not None}
    show_table(tuple(shown), list(zip(*shown.values(), strict=True)), cut=[each for each in _CUT if each in shown])
    if len(zones) == 1:
        say(f"days of {zones.pop()}")


def _facts(found: Integration, facts: Facts) -> dict[str, object]:
    load = _load(found)
    return {
        "connectedAt": _moment(facts.created_at),
        "readSince": _moment(facts.read_since),
        "removedAt": _moment(facts.deleted_at),
        "firstDay": facts.first_day and facts.first_day.isoformat(),
        "lastDay": facts.last_day and facts.last_day.isoformat(),
        "lastNumber": facts.last_number and facts.last_number.isoformat(),
        "daysWithNumber": facts.numbers,
        "openDays": facts.open_days,
        "refused": [{"metric": metric, "on": day.isoformat()} for day, metric in _refused(found)],
        "load": {"days": load.days, "metrics": load.metrics} if load else None,
    }


def _lines(found: Integration, facts: Facts) -> Iterator[tuple[str, object]]:
    yield "integration", found.id
    yield "organization", found.organization_id
    yield "page", f"{found.internal_id} of {found.provider}"
    yield "name", found.name or "-"
    yield "state", _state(found)
    yield "zone of its days", found.zone
    yield "user", found.user_id or f"all {found.provider} pages of {found.organization_id}"
    yield "connected", _moment(facts.created_at)
    yield "read since", _moment(facts.read_since)
    if facts.deleted_at:
        yield "removed", _moment(facts.deleted_at)
    yield "days", f"{facts.first_day} to {facts.last_day}" if facts.first_day else "none was planned yet"
    yield "last number", facts.last_number or "none yet"
    yield "open days", facts.open_days
    for day, metric in _refused(found):
        yield "refused", f"{metric}, the last time on {day}"
    if load := _load(found):
        yield (
            "a call asks for",
            f"at most {_days(load.days)} and {load.metrics} {'metric' if load.metrics == 1 else 'metrics'}",
        )


def _refused(found: Integration) -> list[tuple[dt.date, str]]:
    """Return the metrics that the page was refused with the UTC day of the last refusal, the latest first."""
    return sorted(zip(found.metrics_refused_on, found.metrics_refused, strict=True), reverse=True)


def _load(found: Integration) -> Load | None:
    """Return how much data one call may ask for, or None when the provider set no limit."""
    if not (found.load_days and found.load_metrics and found.load_until):
        return None
    is_over = found.load_until <= dt.datetime.now(dt.UTC)
    return None if is_over else Load(found.load_days, found.load_metrics)


def _moment(at: dt.datetime | None) -> str | None:
    return at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at else None
