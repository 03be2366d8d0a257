"""Lets the operator's program see what the services see, when the operator has set nothing."""

import os
from collections.abc import MutableMapping
from pathlib import Path

CONFIGURATION = Path("/etc/redisq")


def adopt_settings(environ: MutableMapping[str, str], configuration: Path = CONFIGURATION) -> None:
    """Take the environment file and the credentials of the installed services.

    Only when no REDISQ_* variable is set, so that two installations are never mixed. What may not be read is passed
    over: the store then says that it wants a password.
    """
    if any(name.startswith("REDISQ_") for name in environ):
        return
    try:
        lines = (configuration / "redisq.env").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in map(str.strip, lines):
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith(("#", ";")):
            environ[name.strip()] = _unquoted(value.strip())
    credentials = configuration / "credentials"
    if os.access(credentials, os.R_OK | os.X_OK):
        environ.setdefault("CREDENTIALS_DIRECTORY", str(credentials))


def _unquoted(value: str) -> str:
    """Return the value as systemd.exec(5) reads it, but for its escapes, which no setting needs."""
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value
