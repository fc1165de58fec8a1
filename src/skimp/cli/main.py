"""The command `skimp`: its verbs, and how they fail.

Libraries that take seconds to import are imported inside the verbs, so that help is instant.
"""

import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import skimp
from skimp.cli import (
    apply,
    bench,
    demo,
    eval,
    export,
    fit_exit,
    generate,
    inspect,
    machine,
    plan,
    report,
    run,
    serve,
)
from skimp.cli.common import COMMAND
from skimp.errors import SkimpError

USER_ERROR, BUG, INTERRUPTED = 2, 1, 130


class _Interrupted(Exception):
    """Ctrl-C inside a verb; raised anew as an error that typer does not swallow."""


class Verbs(TyperGroup):
    """The verbs, with one way to fail: a line on standard error and an exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any):
        words = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):  # a terminal that knows no × shows ? in its place
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        extra["standalone_mode"] = False
        try:
            code = super().main(words, prog_name or "skimp", **extra)
        except _Interrupted:
            _fail(
                "interrupted; nothing is half-written, and the same search, recipe or tasks go on "
                "where they stopped."
            )
            code = INTERRUPTED
        except SkimpError as error:
            code = _fail(str(error), words)
        except BrokenPipeError:
            code = _hang_up()
        except Exception as error:
            code = _usage(error) or _unexpected(error, words)
        sys.exit(code if isinstance(code, int) else 0)

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any):
        command = shlex.join(["skimp", *args])
        context = super().make_context(info_name, args, *rest, **extra)
        context.meta[COMMAND] = command
        return context

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


def _fail(text: str, words: Sequence[str] = ()) -> int:
    if _debug(words):
        traceback.print_exc()
    print(f"skimp: error: {' '.join(text.split())}", file=sys.stderr)
    return USER_ERROR


def _usage(error: Exception) -> int | None:
    """A mistake in the command line, said in one line; None if the error is another one."""
    # typer brings its own copy of click's errors in some releases: known by what they can do.
    if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
        return None
    found: Any = error
    context = getattr(found, "ctx", None)
    if type(found).__name__ == "NoArgsIsHelpError":
        return USER_ERROR  # the help was printed
    path = context.command_path if context is not None else "skimp"
    text = found.format_message()
    text = text if text.endswith(("?", ".", "!")) else f"{text}."
    return _fail(f"{text} See `{path} --help`.")


def _unexpected(error: Exception, words: Sequence[str]) -> int:
    if isinstance(error, OSError) and error.strerror:
        return _fail(f"{error.filename or 'the system'}: {error.strerror}.", words)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _fail(
            "out of memory; take a smaller model, a smaller batch or --dtype bfloat16.", words
        )
    what = f"{type(error).__name__}: {str(error)[:300].rstrip('.')}"
    _fail(f"unexpected {what}. Please report this, with what `--debug` prints.", words)
    return BUG


def _hang_up() -> int:
    """Whoever read the output has gone: be quiet, now and when Python flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BUG


def _debug(words: Sequence[str]) -> bool:
    return "--debug" in words or os.environ.get("SKIMP_DEBUG", "") not in ("", "0")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"skimp {skimp.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="skimp",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def skimp_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make a trained causal language model cheaper to run, without retraining it.

    Find what the model can leave out ([bold]plan[/]), prove what was lost and
    won beside the dense model ([bold]eval[/], [bold]bench[/]), and keep the
    smaller model ([bold]apply[/]). Start with [bold]skimp demo[/].
    """


app.command("inspect", no_args_is_help=True)(inspect.inspect)
app.command("plan", no_args_is_help=True)(plan.plan)
app.command("fit-exit", no_args_is_help=True)(fit_exit.fit_exit)
app.command("apply", no_args_is_help=True)(apply.apply)
app.command("export", no_args_is_help=True)(export.export)
app.command("eval", no_args_is_help=True)(eval.evaluate)
app.command("bench", no_args_is_help=True)(bench.bench)
app.command("generate", no_args_is_help=True)(generate.generate)
app.command("serve", no_args_is_help=True)(serve.serve)
app.command("machine")(machine.machine)
app.command("report")(report.report)
app.command("run", no_args_is_help=True)(run.run_recipe)
app.command("demo")(demo.demo)

if __name__ == "__main__":
    app()
