"""`redisq org`: the organizations that have pages."""

import click

from jobs import organizations
from jobs.commands.store import connected
from jobs.numbers import MIXED
from jobs.organizations import Organization
from jobs.settings import JobSettings
from redisq.cli import JSON_OPTION, say, show_document, show_table


@click.group(epilog="Example: redisq org list")
def org() -> None:
    """Look at the organizations. `redisq integration add` makes a new one with its first page."""


@org.command("list", epilog="Example: redisq org list")
@JSON_OPTION
def list_(as_json: bool) -> None:
    """List the organizations: their pages, their time zones, and the first and last day with a number."""
    with connected(JobSettings.from_environment()) as connection:
        found = organizations.list_all(connection)
    if as_json:
        show_document({"organizations": [_document(each) for each in found]})
        return
    zones = {zone for each in found for zone in each.zones}
    columns: tuple[str, ...] = ("org", "active", "disabled", "reconnect", "first", "last", "zone")
    rows = [
        (
            each.id,
            each.active,
            each.disabled,
            each.reconnect,
            each.first_number or "-",
            each.last_number or "-",
            MIXED if len(each.zones) > 1 else "".join(each.zones),
        )
        for each in found
    ]
    if len(zones) > 1:
        show_table(columns, rows, cut=("zone",))
        return
    show_table(columns[:-1], [row[:-1] for row in rows])
    if zones:
        say(f"days of {zones.pop()}")


def _document(found: Organization) -> dict[str, object]:
    return {
        "organizationId": found.id,
        "pages": found.pages,
        "active": found.active,
        "disabled": found.disabled,
        "reconnect": found.reconnect,
        "zones": found.zones,
        "firstNumber": found.first_number and found.first_number.isoformat(),
        "lastNumber": found.last_number and found.last_number.isoformat(),
    }
