"""spikeport lava setup, spikeport lava status"""

import typer

from spikeport import console

cli = typer.Typer(no_args_is_help=True, help="Intel's Lava, in an environment of its own.")


@cli.command(epilog="Example: spikeport lava setup")
def setup(overwrite: console.Overwrite = False) -> None:
    """Build the environment that engine lava runs in (about a minute)."""
    from spikeport.targets.loihi.lava import environment

    environment.setup(say=console.say, overwrite=overwrite)
    status()


@cli.command(epilog="Example: spikeport lava status --json")
def status(json: console.Json = False) -> None:
    """Say whether engine lava can run, and with which versions."""
    from dataclasses import asdict

    from spikeport.targets.loihi.lava import environment

    found = environment.status()
    if json:
        console.print_json({name: str(v) if name == "home" else v for name, v in asdict(found).items()})
        return
    if found.ready:
        versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
        console.say(f"ready in {found.home}: {versions}")
    else:
        console.say(str(found.problem))
