"""The option `--retry-failed[=KIND,…]`, whose value is never the next word."""

from typing import Any

import click

from batchrun.errors import ErrorKind

NAME = "--retry-failed"


class Kinds(click.ParamType[frozenset[str]]):
    """Kinds of failure with commas between them; empty text is all rows that failed."""

    name = "kinds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> frozenset[str]:
        if isinstance(value, frozenset):
            return value
        from batchrun.records import ANSWERED

        known = {*(kind.value for kind in ErrorKind), *ANSWERED} - {ErrorKind.INVALID_ROW.value}
        kinds = {word.strip() for word in str(value).split(",")} - {""}
        if unknown := sorted(kinds - known):
            from batchrun.formats.nearest import nearest

            self.fail(
                f"{', '.join(map(repr, unknown))} is no kind of failure that is sent again; "
                f"{nearest(unknown[0], sorted(known))}",
                param,
                ctx,
            )
        return frozenset(kinds)


class NeverTakesTheNextWord(click.Command):
    """`--retry-failed prompts.jsonl` is the option and a source; click would take both as one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        given = [f"{word}=" if word == NAME else word for word in args[:end]]
        return super().parse_args(ctx, [*given, *args[end:]])
