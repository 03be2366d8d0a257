"""`redisq enqueue`: a command for each kind, its options made from the kind's payload."""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, get_type_hints

import click

from redisq.cli.loading import load
from redisq.cli.outcome import Exit, Failed
from redisq.cli.output import JSON_OPTION, clean, say, show_document, show_lines
from redisq.cli.session import Session
from redisq.job import Kind
from redisq.queue import REPLICATION, checked_delay


class _Kinds(click.Group):
    """The kinds of the application as commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_session(ctx).registry)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        session = _session(ctx)
        return _command(session, session.registry[cmd_name]) if cmd_name in self.list_commands(ctx) else None


@click.group(cls=_Kinds, epilog="Example: redisq enqueue ingest --org acme --integration fb-1 --date 2026-03-08")
def enqueue() -> None:
    """Put one job of a KIND into its queue. A job that is there already is left as it is, with exit code 4."""


def _session(ctx: click.Context) -> Session:
    # While a shell completes a word no command runs, so that there is no session yet.
    session: Session = ctx.obj or Session(ctx.find_root().command.parts)  # type: ignore[attr-defined]  # a Program
    return session


def _command(session: Session, kind: Kind[Any]) -> click.Command:
    hints = get_type_hints(kind.payload)
    fields = dataclasses.fields(kind.payload)
    options = [_option(field, hints[field.name], session.parts.option_names) for field in fields]
    example = " ".join(["Example: redisq enqueue", kind.name, *(f"{o.opts[0]} {o.metavar}" for o in options)])
    help = (kind.payload.__doc__ or "").partition("\n")[0]

    @click.pass_context
    def run(
        ctx: click.Context, /, queue_name: str | None, delay: float, replicas: int, as_json: bool, **values: object
    ) -> None:
        _run(ctx, kind, values, queue=queue_name, delay=delay, replicas=replicas, as_json=as_json)

    common: list[click.Parameter] = [
        click.Option(
            ["--queue", "queue_name"],
            type=click.Choice(session.registry.queues),
            metavar="QUEUE",
            help=f"Instead of {kind.queue}.",
        ),
        click.Option(["--delay"], type=float, default=0.0, metavar="SECONDS", help="Run it later, a year at most."),
        click.Option(
            ["--wait", "replicas"],
            type=click.IntRange(0, 100),
            default=0,
            metavar="N",
            help=f"Wait up to {REPLICATION:g} s until N replicas have it; end with {Exit.PARTIAL:d} when fewer have.",
        ),
    ]
    return JSON_OPTION(click.Command(kind.name, callback=run, params=[*options, *common], help=help, epilog=example))


def _option(field: dataclasses.Field[Any], hint: object, names: Mapping[str, str]) -> click.Option:
    name = names.get(field.name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "-", field.name).replace("_", "-").lower()
    type_ = hint if hint in (str, int, float, bool) else str
    option = partial(click.Option, [f"--{name}", field.name], type=type_, metavar=name.upper())
    if field.default is not dataclasses.MISSING:
        return option(default=field.default, show_default=True)
    return option(required=True)


def _run(
    ctx: click.Context,
    kind: Kind[Any],
    values: dict[str, object],
    *,
    queue: str | None,
    delay: float,
    replicas: int,
    as_json: bool,
) -> None:
    session: Session = ctx.obj
    try:
        job = kind.job(kind.payload(**values), queue=queue)
        job.encode()  # refuses a bad job before the application notes it
        checked_delay(delay)
        load(session.parts.before_enqueue)(job)
    except ValueError as error:
        raise Failed(clean(error), Exit.USAGE) from None
    to = session.queue(job.queue)
    if replicas:
        found, reached = to.enqueue_replicated(job, delay=delay, replicas=replicas)
    else:
        found, reached = to.enqueue(job, delay=delay), 0
    if as_json:
        fields = {"id": found.id, "queue": job.queue, "created": found.created, "state": found.state}
        show_document(fields | {"replicas": reached} if replicas else fields)
    else:
        show_lines(found.id)
    if not found.created:
        say(f"redisq: {found.id} exists on queue {job.queue}: it is {found.state}")
    if reached < replicas:
        say(
            f"redisq: {found.id} is enqueued, but only {reached} of {replicas} replicas have it: a failover may lose it"
        )
        ctx.exit(Exit.PARTIAL)
    if not found.created:
        ctx.exit(Exit.EXISTS)
