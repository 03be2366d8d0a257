"""`redisq config`: what is set, and where it comes from."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click

from redisq.cli.output import JSON_OPTION, clean, say, show_document, show_table
from redisq.cli.services import CONFIGURATION, credentials_of_services, file_of_services, settings_of_services
from redisq.cli.session import Session
from redisq.config import SettingsKind, credential, credential_file
from redisq.errors import BadSettings
from redisq.server import Finding
from redisq.units import Units


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting. A secret is "set", "not set" or "unreadable"; `source` is a file, "environment" or "default"."""

    name: str
    value: str
    source: str


@click.group(epilog="Example: redisq config show")
def config() -> None:
    """Show what is set, and where it comes from."""


@config.command(epilog="Example: redisq config show")
@JSON_OPTION
@click.pass_obj
def show(session: Session, as_json: bool) -> None:
    """Show each setting with its value and its source. Of a secret only whether it is set.

    The settings are those that this command uses: of the environment if any REDISQ_* variable is set there, else of
    the installed services. Ends with 2 when one of them cannot be used.
    """
    rows = [row for kind in session.kinds_of_settings for row in shown(kind, os.environ, session.adopted)]
    if as_json:
        show_document({"file": session.adopted and str(session.adopted), "settings": [asdict(row) for row in rows]})
    else:
        show_table(("setting", "source", "value"), [(row.name, _short(row.source), row.value) for row in rows])
        if session.adopted is None and file_of_services().exists():
            say(f"redisq: the environment has settings of its own; the services use {file_of_services()}")
    for kind in session.kinds_of_settings:
        kind.from_environment(os.environ)  # which says what cannot be used


def shown(kind: type[SettingsKind], environ: Mapping[str, str], adopted: Path | None) -> list[Shown]:
    """Return each setting of `kind`. `adopted` is the file that the environment was taken from, if it was."""
    secrets = {name.replace("-", "_") for name in kind.CREDENTIALS}
    source = str(adopted) if adopted else "environment"
    rows = []
    for option in fields(kind):
        if option.name in secrets:
            continue
        name = f"REDISQ_{option.name.upper()}"
        text = environ.get(name)
        default = f"{option.default:g}" if isinstance(option.default, float) else str(option.default)
        rows.append(Shown(name, _safe(kind, option.name, text or default), source if text else "default"))
    return rows + [_secret(name, environ, adopted) for name in kind.CREDENTIALS]


def _safe(kind: type[SettingsKind], field: str, text: str) -> str:
    if field not in kind.ADDRESSES:
        return clean(text)
    try:
        return clean(kind.ADDRESSES[field](text))
    except BadSettings:
        return "no address"  # and what it is may hold a password


def _secret(name: str, environ: Mapping[str, str], adopted: Path | None) -> Shown:
    file = credential_file(name, environ)
    if file is None and adopted and credentials_of_services(adopted.parent).exists():
        return Shown(name, "unreadable", str(credentials_of_services(adopted.parent) / name))  # by this user
    source = "default" if file is None else str(file)
    try:
        return Shown(name, "set" if credential(name, environ) else "not set", source)
    except BadSettings:
        return Shown(name, "unreadable", source)


def _short(source: str) -> str:
    """Return a source as it fits a table: credentials lie beside each other, each in the file of its name."""
    return f"{Path(source).parent}/" if source.startswith("/") and not source.endswith(".env") else source


def inspect_settings(
    kinds: Iterable[type[SettingsKind]],
    environ: Mapping[str, str],
    units: Units,
    *,
    adopted: Path | None,
    configuration: Path = CONFIGURATION,
) -> list[Finding]:
    """Return whether the services can use their settings, and whether this command uses the same.

    Where no services are installed, the settings of `environ` are looked at.
    """
    kinds, file = list(kinds), file_of_services(configuration)
    try:
        services = settings_of_services(configuration)
    except FileNotFoundError:
        complaint = _complaint(kinds, environ)
        if complaint:
            return [Finding("failed", "settings", complaint)]
        return [Finding("ok", "settings", f"those of the environment can be used; there is no {file}")]
    except (OSError, UnicodeDecodeError):
        return [Finding("warning", "settings", f"{file} may not be read, so what the services use is not known")]
    if complaint := _complaint(kinds, services):
        return [Finding("failed", "settings", f"{file}: {complaint}{units.restart_all()}")]
    found = [Finding("ok", "settings", f"the services can use those of {file}")]
    if adopted is None:
        text = f"the environment has settings of its own: all but this line is checked with them, not with {file}"
        found.append(Finding("warning", "settings", text))
    return found


def _complaint(kinds: Sequence[type[SettingsKind]], environ: Mapping[str, str]) -> str:
    for kind in kinds:
        try:
            kind.from_environment(environ)
        except BadSettings as error:
            return clean(error)
    return ""
