"""`hpcasync completion`: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    r"""Print the script that makes SHELL complete commands, options and files.

    \b
    bash: hpcasync completion bash > ~/.local/share/bash-completion/completions/hpcasync
    zsh:  hpcasync completion zsh > DIR/_hpcasync        (DIR: one of $fpath)
    fish: hpcasync completion fish > ~/.config/fish/completions/hpcasync.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "hpcasync", "_HPCASYNC_COMPLETE").source())
