"""What the verbs share: output, progress bars, tables, and how errors end."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

#: Columns of a table that goes into a file or a pipe, where no terminal folds it.
PLAIN_WIDTH = 200

out = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Interrupted(Exception):
    """Ctrl-C; says how to go on."""


@contextmanager
def bar(what: str) -> Iterator[Any]:
    """A progress bar as a callable (done, total); draws nothing where the output is not a terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], text_columns: int = 1, remarks: bool = False
) -> None:
    """Prints a table: the first ``text_columns`` columns are text (with ``remarks`` the last, too), others numbers."""
    drawn = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(columns):
        # A name is folded rather than cut: a script, or a person, needs the whole of it.
        text = k < text_columns or (remarks and k == len(columns) - 1)
        drawn.add_column(name, justify="left" if text else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text("–" if cell is None else str(cell)) for cell in row))
    out.print(drawn)


def print_json(value: Any) -> None:
    """Plain JSON on standard output, whatever the width of the terminal."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """One line of plain text; never wrapped, so that paths can be copied."""
    out.print(text, soft_wrap=True, markup=False, highlight=False)
