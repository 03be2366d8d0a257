"""`redisq completion`: the script that makes a shell complete our words."""

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh")


@click.command(epilog='Example, in ~/.bashrc: eval "$(redisq completion bash)"')
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell, to be read by its start file."""
    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"this click knows no completion for {shell}")
    click.echo(script(ctx.find_root().command, {}, "redisq", "_REDISQ_COMPLETE").source())
