"""The `ckptd` command. Exit codes: 0 done, 1 it failed, 2 bad usage or settings, 3 the job id is in use, 4 asked, and
something is wrong (status, show)."""

from __future__ import annotations

import sys

import typer

from ckptd.cli.cat import cat
from ckptd.cli.coordinator import coordinator
from ckptd.cli.daemon import daemon
from ckptd.cli.demo import demo
from ckptd.cli.diff import diff
from ckptd.cli.events import events
from ckptd.cli.export import export
from ckptd.cli.gc import gc
from ckptd.cli.import_ import import_
from ckptd.cli.ls import ls
from ckptd.cli.options import log_style
from ckptd.cli.pin import pin
from ckptd.cli.reshard import reshard
from ckptd.cli.retire import retire
from ckptd.cli.run import run
from ckptd.cli.show import show
from ckptd.cli.status import status
from ckptd.cli.unpin import unpin
from ckptd.cli.verify import OptionalShare, verify
from ckptd.errors import CkptdError, ConfigError, JobInUseError, StoreConfigError, UnsafeStoreError
from ckptd.observe import setup_logging

app = typer.Typer(
    name="ckptd",
    help="Fault-tolerant checkpointing and elastic recovery for PyTorch training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(daemon)
app.command()(coordinator)
app.command()(ls)
app.command()(show)
app.command()(diff)
app.command()(cat)
app.command()(reshard)
app.command()(status)
app.command()(pin)
app.command()(unpin)
app.command()(retire)
app.command()(gc)
app.command(cls=OptionalShare)(verify)
app.command()(events)
app.command("import")(import_)
app.command()(export)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(run)
app.command()(demo)


def main() -> None:
    """Run a verb; an error of ours is one line on stderr and an exit code, never a traceback."""
    setup_logging(log_style())  # to stderr, whatever the verb: stdout is its answer
    try:
        app()
    except JobInUseError as error:
        _end(error, 3)
    except (ConfigError, StoreConfigError, UnsafeStoreError) as error:
        _end(error, 2)
    except CkptdError as error:
        _end(error, 1)


def _end(error: CkptdError, code: int) -> None:
    print(f"ckptd: {error}", file=sys.stderr)
    sys.exit(code)
