"""What is set, and where it comes from: `redisq config show`, and what `doctor` says of the services' settings."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest

from jobs.settings import JobSettings
from redisq import Settings
from redisq.cli import Units
from redisq.cli.config import inspect_settings, shown
from redisq.cli.services import adopt_settings
from tests.program import NOWHERE, Shell

PROJECT = Path(__file__).resolve().parents[1]
KINDS = (Settings, JobSettings)
UNITS = Units(target="redisq.target")
CANARY = "canary-of-a-secret"


def installation(folder: Path, text: str, **secrets: str) -> Path:
    """Make what `make install` makes in /etc/redisq, with these settings."""
    (folder / "redisq.env").write_text(text)
    (folder / "credentials").mkdir()
    for name in (name for kind in KINDS for name in kind.CREDENTIALS):
        (folder / "credentials" / name).write_text(secrets.get(name.replace("-", "_"), ""))
    return folder


def test_every_setting_is_shown_with_its_value_and_source_and_no_secret(tmp_path: Path) -> None:
    """Whoever is paged asks first which Redis, which database, and which file to change."""
    (tmp_path / "key").write_text(CANARY)
    shell = Shell(
        {
            "REDISQ_REDIS_URL": f"redis://me:{CANARY}@{NOWHERE}/0?password={CANARY}",
            "REDISQ_DATABASE_URL": f"postgresql://redisq:{CANARY}@{NOWHERE}/redisq",
            "REDISQ_TOKEN_KEY_FILE": str(tmp_path / "key"),
        }
    )
    ran, document = shell.run("config", "show"), shell.json("config", "show")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert CANARY not in ran.stdout + str(document)
    found = {each["name"]: (each["value"], each["source"]) for each in document["settings"]}
    assert found["REDISQ_REDIS_URL"] == (f"redis://me@{NOWHERE}/0", "environment")
    assert found["REDISQ_DATABASE_URL"] == (f"{NOWHERE}/redisq", "environment")
    assert found["REDISQ_LEASE"] == ("15", "default")
    assert found["REDISQ_GRAPH_VERSION"] == ("v25.0", "default")
    assert found["token-key"] == ("set", str(tmp_path / "key"))
    assert found["app-secret"] == ("not set", "default")
    example = (PROJECT / "systemd" / "redisq.env.example").read_text()
    secrets = {name for kind in KINDS for name in kind.CREDENTIALS}
    assert found.keys() == {f"REDISQ_{name}" for name in re.findall(r"^#REDISQ_(\w+)=", example, re.M)} | secrets
    assert [line for line in ran.stdout.splitlines() if line.startswith("REDISQ_SLOTS")] == [
        f"{'REDISQ_SLOTS':25}  {'default':{len(str(tmp_path)) + 1}}  8"
    ]


def test_the_settings_fit_a_terminal() -> None:
    """The last column alone wraps."""
    lines = click.unstyle(Shell({"REDISQ_SLOTS": "4"}).on_terminal("config", "show")).splitlines()
    assert max(map(len, lines)) <= 80


def test_a_setting_that_cannot_be_used_is_shown_and_named() -> None:
    """It is the one that is looked for."""
    ran = Shell({"REDISQ_LEASE": "soon", "REDISQ_REDIS_URL": f"redis://me:{CANARY}@h:p/0"}).run("config", "show")
    assert ran.returncode == 2
    assert re.search(r"^REDISQ_LEASE +environment +soon$", ran.stdout, re.M)
    assert re.search(r"^REDISQ_REDIS_URL +environment +no address$", ran.stdout, re.M)
    assert ran.stderr.startswith("redisq: REDISQ_")
    assert CANARY not in ran.stdout + ran.stderr


def test_settings_of_the_services_are_shown_with_their_files(tmp_path: Path) -> None:
    """That is where they are to be changed."""
    installation(tmp_path, "REDISQ_SLOTS=4\n", token_key=CANARY)
    environ: dict[str, str] = {}
    adopted = adopt_settings(environ, tmp_path)
    assert adopted == tmp_path / "redisq.env"
    found = {each.name: (each.value, each.source) for kind in KINDS for each in shown(kind, environ, adopted)}
    assert found["REDISQ_SLOTS"] == ("4", str(adopted))
    assert found["REDISQ_LEASE"] == ("15", "default")
    assert found["token-key"] == ("set", str(tmp_path / "credentials" / "token-key"))
    assert found["app-secret"] == ("not set", str(tmp_path / "credentials" / "app-secret"))
    del environ["CREDENTIALS_DIRECTORY"]  # as for a user who may not look into it
    [secret] = [each for each in shown(JobSettings, environ, adopted) if each.name == "token-key"]
    assert secret.value == "unreadable"


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ("REDISQ_SLOTS=4\n", "ok", "the services can use those of {file}"),
        ("REDISQ_SLOTS=400\n", "failed", "{file}: REDISQ_SLOTS is 400: take 1 to 128; "),
        ("REDISQ_MAX_AGE_DAYS=0\n", "failed", "{file}: REDISQ_MAX_AGE_DAYS is 0: take 1 to 36500; "),
        (f"REDISQ_DATABASE_URL=postgresql://me:{CANARY}@@h/d\n", "failed", "{file}: REDISQ_DATABASE_URL"),
    ],
)
def test_doctor_checks_the_settings_that_the_services_would_use(
    text: str, level: str, said: str, tmp_path: Path
) -> None:
    """A unit that cannot use its settings is down while `systemctl restart redisq.target` ended with 0."""
    installation(tmp_path, text)
    environ: dict[str, str] = {}
    adopted = adopt_settings(environ, tmp_path)
    [found] = inspect_settings(KINDS, environ, UNITS, adopted=adopted, configuration=tmp_path)
    assert found.level == level
    assert found.text.startswith(said.format(file=tmp_path / "redisq.env"))
    assert found.text.endswith("; then systemctl restart redisq.target") == (level == "failed")
    assert CANARY not in found.text


def test_doctor_says_when_it_looks_at_another_installation_than_the_services(tmp_path: Path) -> None:
    """A variable that was left over in a shell must not hide that the services are down."""
    installation(tmp_path, "REDISQ_SLOTS=400\n")
    [found] = inspect_settings(KINDS, {"REDISQ_SLOTS": "4"}, UNITS, adopted=None, configuration=tmp_path)
    assert found.level == "failed"
    (tmp_path / "redisq.env").write_text("REDISQ_SLOTS=5\n")
    found, other = inspect_settings(KINDS, {"REDISQ_SLOTS": "4"}, UNITS, adopted=None, configuration=tmp_path)
    assert (found.level, other.level) == ("ok", "warning")
    assert "the environment has settings of its own" in other.text


def test_doctor_says_so_where_it_may_not_read_what_the_services_use(tmp_path: Path) -> None:
    """Silence would look like a check that passed."""
    (tmp_path / "redisq.env").mkdir()
    [found] = inspect_settings(KINDS, {}, UNITS, adopted=None, configuration=tmp_path)
    assert (found.level, "may not be read" in found.text) == ("warning", True)


def test_without_installed_services_doctor_checks_its_own_environment(tmp_path: Path) -> None:
    """In development there is nothing else."""
    [good] = inspect_settings(KINDS, {}, UNITS, adopted=None, configuration=tmp_path)
    [bad] = inspect_settings(KINDS, {"REDISQ_LEASE": "soon"}, UNITS, adopted=None, configuration=tmp_path)
    assert (good.level, bad.level) == ("ok", "failed")
    assert bad.text == "REDISQ_LEASE is 'soon', which is not a number"


def test_one_bad_setting_is_one_line_of_doctor() -> None:
    """Each check meets it, and the line that says what to mend must not drown."""
    found = Shell({"REDISQ_LEASE": "soon"}).json("doctor")["findings"]
    assert len([each for each in found if "REDISQ_LEASE" in each["text"]]) == 1


def test_the_install_ends_with_what_to_look_at_after_a_restart() -> None:
    """`systemctl restart redisq.target` ends with 0 although a unit has failed."""
    makefile, docs = (PROJECT / "Makefile").read_text(), (PROJECT / "docs/install.md").read_text()
    said = makefile.partition("Installed. Next:")[2].partition("\n\n")[0]
    for command in ("systemctl list-units --failed", "redisq doctor"):
        assert command in said
        assert command in docs
    assert os.path.basename(UNITS.target) in said
