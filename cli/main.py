"""The ``spikeport`` command."""

import errno
import os
import sys
import warnings
from typing import Annotated, Any

import typer
import typer.core

from spikeport import console
from spikeport.commands import check, demo, export, lava, listing, report, simulate, study, train
from spikeport.core.errors import SpikeportError
from spikeport.core.memory import keep_freed_memory

#: What to do where the system refuses a file.
REMEDIES = {
    errno.EISDIR: "a file is wanted there; name another",
    errno.EEXIST: "a folder is wanted there; name another",
    errno.ENOTDIR: "a folder is wanted there; name another",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "make room, or name another disk",
}


class Group(typer.core.TyperGroup):
    """Typer itself would end a command that is interrupted without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise console.Interrupted("") from None


cli = typer.Typer(
    cls=Group,
    name="spikeport",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a PyTorch CNN to its spiking twin, to ONNX, NIR and Intel Loihi, with spikes and energy one can check.",
    epilog="Start with: spikeport demo",
)
for module in (demo, train, export, check, simulate, report):
    module.register(cli)
cli.add_typer(study.cli, name="study")
cli.add_typer(lava.cli, name="lava")
listing.register(cli)


@cli.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        from spikeport import __version__

        typer.echo(f"spikeport {__version__}")
        raise typer.Exit


def told(error: OSError) -> str:
    """What the system refused, where, and what to do."""
    path = error.filename2 or error.filename
    if path is None:
        return str(error)
    remedy = REMEDIES.get(error.errno or 0, "check its permissions, or name another")
    return f"{os.fsdecode(path)}: {error.strerror}; {remedy}"


python_shows = warnings.formatwarning


def shown(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of ours as one line, as errors are; others with their place in the code."""
    if category is RuntimeWarning:
        return f"warning: {message}\n"
    return python_shows(message, category, filename, lineno, line)


def app() -> None:
    """Runs the command; an error of ours ends it in one or two lines, with its exit status."""
    keep_freed_memory()
    warnings.formatwarning = shown
    for argument in sys.argv[1:]:
        if argument != argument.encode(errors="replace").decode():  # the files we write name it, in UTF-8
            typer.echo(f"error: {argument!a} is no UTF-8; rename that file or folder", err=True)
            sys.exit(2)
    try:
        cli()
    except (KeyboardInterrupt, console.Interrupted) as interrupted:
        typer.echo(f"interrupted; {interrupted}" if str(interrupted) else "interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        # OSError: a full disk, a folder without permission, a file where a folder should be.
        if not isinstance(error, (SpikeportError, OSError)):
            raise
        typer.echo(f"error: {told(error) if isinstance(error, OSError) else error}", err=True)
        sys.exit(getattr(error, "exit_status", SpikeportError.exit_status))


if __name__ == "__main__":
    app()
