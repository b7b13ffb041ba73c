"""Sphinx extension: the directive `command` shows the `--help` of a command, as it is today.

The same click objects that print the help are read when the site is built.
"""

import re
from collections.abc import Iterator

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from batchrun.cli.main import batchrun, find_command

_WIDTH = 100  # columns of the examples, as in a wide terminal


def context_of(name: str) -> click.Context:
    """The context in which `batchrun NAME --help` prints; without a name, that of `batchrun`."""
    top = click.Context(batchrun, info_name="batchrun", max_content_width=_WIDTH)
    top.terminal_width = _WIDTH
    if not name:
        return top
    found = click.Context(find_command(name), info_name=name, parent=top)
    found.terminal_width = _WIDTH
    return found


def options_of(context: click.Context) -> list[tuple[str, str]]:
    """Each option with its argument, and what the help says about it."""
    options = [each for each in context.command.params if isinstance(each, click.Option)]
    records = [option.get_help_record(context) for option in options]
    return [*filter(None, records), ("-h, --help", "Show this message and exit.")]


def paragraphs_of(context: click.Context) -> Iterator[str]:
    """The paragraphs of the help text, unwrapped."""
    for paragraph in re.split(r"\n\s*\n", context.command.help or ""):
        yield " ".join(paragraph.replace("\b", "").split())


def examples_of(context: click.Context) -> str:
    """What follows the options: examples, exit codes and the like, wrapped as the help wraps it."""
    formatter = context.make_formatter()
    context.command.format_epilog(context, formatter)
    lines = formatter.getvalue().strip("\n").splitlines()
    return "\n".join(line.removeprefix("  ") for line in lines)


class CommandHelp(SphinxDirective):
    """`{command} run`: usage, help text, a table of options, examples."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        context = context_of(self.arguments[0] if self.arguments else "")
        made: list[nodes.Node] = [_block(context.get_usage().removeprefix("Usage: "))]
        made += [_text(paragraph) for paragraph in paragraphs_of(context)]
        if self.arguments:
            made.append(_table("option", options_of(context)))
        else:
            names = batchrun.list_commands(context)
            helps = ((name, batchrun.commands[name].get_short_help_str(_WIDTH)) for name in names)
            made.append(_table("command", list(helps)))
        if examples := examples_of(context):
            made.append(_block(examples))
        return made


def _block(text: str) -> nodes.Node:
    block = nodes.literal_block(text, text)
    block["language"] = "text"
    return block


def _text(text: str) -> nodes.paragraph:
    """A paragraph in which `this` is code."""
    made = nodes.paragraph()
    for number, piece in enumerate(text.split("`")):
        made += nodes.literal(piece, piece) if number % 2 else nodes.Text(piece)
    return made


def _table(head: str, rows: list[tuple[str, str]]) -> nodes.Node:
    group = nodes.tgroup(cols=2)
    group += [nodes.colspec(colwidth=34), nodes.colspec(colwidth=66)]
    group += nodes.thead("", _row(_text(head), _text("meaning")))
    group += nodes.tbody("", *(_row(_text(f"`{name}`"), _text(says)) for name, says in rows))
    return nodes.table("", group, classes=["options"])


def _row(*cells: nodes.Node) -> nodes.row:
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
