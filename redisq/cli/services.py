"""Lets the operator's program see what the services see, when the operator has set nothing."""

import os
from collections.abc import MutableMapping
from pathlib import Path

CONFIGURATION = Path("/etc/redisq")
_DIRECTORY = "CREDENTIALS_DIRECTORY"


def adopt_settings(environ: MutableMapping[str, str], configuration: Path = CONFIGURATION) -> Path | None:
    """Take the environment file and the credentials of the installed services; return the file, None if not taken.

    Only when no REDISQ_* variable is set, so that two installations are never mixed. What may not be read is passed
    over: the store then says that it wants a password.
    """
    if any(name.startswith("REDISQ_") for name in environ):
        return None
    try:
        found = settings_of_services(configuration)
    except (OSError, UnicodeDecodeError):
        return None
    directory = environ.get(_DIRECTORY) or found.get(_DIRECTORY)
    environ.update(found)
    if directory:
        environ[_DIRECTORY] = directory
    return file_of_services(configuration)


def file_of_services(configuration: Path = CONFIGURATION) -> Path:
    """Return the environment file of the installed services, whether it is there or not."""
    return configuration / "redisq.env"


def credentials_of_services(configuration: Path = CONFIGURATION) -> Path:
    """Return the directory of the secrets of the installed services, whether it is there or not."""
    return configuration / "credentials"


def settings_of_services(configuration: Path = CONFIGURATION) -> dict[str, str]:
    """Return the environment of the installed services, with their credentials where these may be read.

    Raise `OSError` or `UnicodeDecodeError` for a file that cannot be read.
    """
    found: dict[str, str] = {}
    for line in map(str.strip, file_of_services(configuration).read_text().splitlines()):
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith(("#", ";")):
            found[name.strip()] = _unquoted(value.strip())
    credentials = credentials_of_services(configuration)
    if os.access(credentials, os.R_OK | os.X_OK):
        found.setdefault(_DIRECTORY, str(credentials))
    return found


def _unquoted(value: str) -> str:
    """Return the value as systemd.exec(5) reads it, but for its escapes, which no setting needs."""
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value
