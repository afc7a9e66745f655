"""The ``spikeport`` command."""

import sys
from typing import Annotated

import typer

from spikeport.commands import check, demo, export, lava, listing, report, simulate, study, train
from spikeport.memory import keep_freed_memory

cli = typer.Typer(
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


def app() -> None:
    """Runs the command; an error of ours ends it in one or two lines, with its exit status."""
    keep_freed_memory()
    try:
        cli()
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        # Imported only now: it brings torch with it, and --help should not wait for that.
        from spikeport.core.errors import SpikeportError

        # OSError: a full disk, a folder without permission, a file where a folder should be.
        if not isinstance(error, (SpikeportError, OSError)):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(getattr(error, "exit_status", SpikeportError.exit_status))


if __name__ == "__main__":
    app()
