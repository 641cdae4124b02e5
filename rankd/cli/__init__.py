"""The commands, one module a verb: the only place that reads argv, the environment and configuration files.

Every verb exits with 0, with 1 where it found a problem, with 2 where it was used wrongly.
"""

from __future__ import annotations

import typer

from rankd.cli.analyze import analyze
from rankd.cli.demo import demo
from rankd.cli.doctor import doctor
from rankd.cli.export import export
from rankd.cli.keys import keys
from rankd.cli.query import query
from rankd.cli.replay import replay
from rankd.cli.run import run
from rankd.cli.runs import runs
from rankd.cli.serve import serve
from rankd.cli.sync import sync
from rankd.cli.tail import tail
from rankd.version import version_line

app = typer.Typer(
    help="Watch the weight matrices of a training run, without slowing it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command(context_settings={"allow_interspersed_args": False})(run)
app.command()(demo)
app.command()(tail)
app.command()(analyze)
app.command()(runs)
app.command()(query)
app.command()(export)
app.command()(replay)
app.command()(sync)
app.command()(doctor)
app.add_typer(keys, name="keys")


@app.callback()
def _options(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:  # alone it never comes here; see rankd/__main__.py
        print(version_line())
        raise typer.Exit
