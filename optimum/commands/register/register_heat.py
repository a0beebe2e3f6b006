"""`optimum-cli heat VERB …`: the verbs of `heat-hf` under Optimum's command line.

Optimum imports this file whenever it starts, so nothing of heat_hf is imported before the command runs.
"""

from __future__ import annotations

import sys
from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class HeatCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Hands everything after `heat` to `heat-hf`."""

    COMMAND = CommandInfo(name="heat", help="Hardware-efficient tensor factorization of encoders (heat_hf).")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """One positional that takes the rest of the line, which cannot begin with an option: `--version` is one of its own."""
        parser.add_argument("--version", action="store_true", help="print the version of heat-hf")
        parser.add_argument("arguments", nargs=REMAINDER, metavar="VERB …", help="as for heat-hf: try `compress --help`")

    def run(self) -> None:
        """Exit with the code of `heat-hf`."""
        from heat_hf.cli import main

        arguments = ["--version"] if self.args.version else self.args.arguments
        sys.exit(main(arguments, prog="optimum-cli heat"))


REGISTER_COMMANDS = [HeatCommand]
