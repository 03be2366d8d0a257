"""`redisq demo`: the whole system on synthetic pages."""

import click

from jobs.demo import run
from jobs.servers import ServerError
from redisq.cli import Failed


@click.command(epilog="Example: redisq demo --keep")
@click.option("--keep", is_flag=True, help="Leave everything up until Ctrl-C, to look around.")
@click.pass_context
def demo(ctx: click.Context, keep: bool) -> None:
    """Run fourteen days of twenty synthetic pages through private servers, and show what came of it."""
    try:
        ctx.exit(run(keep=keep))
    except ServerError as error:
        raise Failed(str(error)) from None
