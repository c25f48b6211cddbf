"""The `roseinfer` command. Flags are made from the settings in `core/config.py`; heavy imports wait for a command."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import roseinfer
from roseinfer.core.config import KNOBS, Config, Knob, knobs_of, load_config
from roseinfer.core.errors import exit_code_of

app = typer.Typer(
    help="Run language models: serve them over HTTP, or ask them here.",
    epilog="Every setting is also a variable (ROSEINFER_PORT) and a key of roseinfer.toml (port).",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help comes up in a third of the time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    sys.exit(exit_code_of(lambda: app(prog_name="roseinfer")))


def _model(metavar: str, help: str, *, is_required: bool) -> inspect.Parameter:
    argument = typer.Argument(metavar=metavar, help=help, show_default=False)
    if is_required:
        return _parameter("model", Annotated[str, argument], inspect.Parameter.empty)
    return _parameter("model", Annotated[str | None, argument])


def with_settings(
    *names: str, model: inspect.Parameter | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of these settings, and calls it with a `Config` instead of them.

    `names` are settings or whole sections; `model` is how the command declares its MODEL argument, if it has one.
    """
    knobs = [knob for knob in knobs_of(*names) if knob.name != "model"]
    num_arguments = 0 if model is None else 1
    settings = [*([model] if model else []), *map(_flag, knobs)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "config"]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            flags = {setting.name: values.pop(setting.name) for setting in settings}
            command(load_config(flags, config_file=values.pop("config")), **values)

        # The argument first, then what is the command's own: this is the order of the help.
        parameters = [*settings[:num_arguments], *own, *settings[num_arguments:], _config_flag()]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _optional_model() -> inspect.Parameter:
    return _model("MODEL", _help_of(KNOBS["model"]), is_required=False)


def _flag(knob: Knob) -> inspect.Parameter:
    declaration = f"{knob.flag}/--no-{knob.flag[2:]}" if knob.kind.is_switch else knob.flag
    option = typer.Option(declaration, metavar=knob.kind.metavar or None, help=_help_of(knob), show_default=False)
    return _parameter(knob.name, Annotated[(bool if knob.kind.is_switch else str) | None, option])


def _config_flag() -> inspect.Parameter:
    option = typer.Option("--config", metavar="PATH", help="Settings file. [default: ./roseinfer.toml, if there]")
    return _parameter("config", Annotated[str | None, option])


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """None stands for a flag that was not given."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _help_of(knob: Knob) -> str:
    if knob.default is None or "[default:" in knob.help:
        return knob.help
    default = {True: "on", False: "off"}.get(knob.default, knob.default) if knob.kind.is_switch else knob.default
    return f"{knob.help} [default: {default}]"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"roseinfer {roseinfer.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run language models: serve them over HTTP, or ask them here."""


@app.command()
@with_settings("model", "engine", "server", model=_optional_model())
def serve(config: Config) -> None:
    """Serve a model over HTTP until Ctrl+C or SIGTERM."""
    from roseinfer.server.runner import serve

    serve(config)


@app.command()
@with_settings("model", "engine", model=_optional_model())
def generate(
    config: Config,
    *,
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="TEXT", help="What to continue; - reads standard input.")
    ],
    max_new_tokens: Annotated[
        int | None, typer.Option("-n", "--max-new-tokens", metavar="INTEGER", help="Most tokens. [default: 64]")
    ] = None,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", help="Sample instead of taking the likeliest token.")
    ] = False,
    temperature: Annotated[float, typer.Option(metavar="NUMBER", help="Of sampling; 0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(metavar="INTEGER", help="Sample from this many likeliest tokens; 0 = all.")] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="NUMBER", help="Sample from the likeliest tokens of this mass.")
    ] = 1.0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on behind the end-of-text token.")] = False,
) -> None:
    """Print a prompt and its completion as it is generated."""
    from roseinfer.inference_engine import GenerateParams, InferenceEngine

    text = sys.stdin.read() if prompt == "-" else prompt
    params = GenerateParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        do_sample=do_sample,
        stop_on_eos=not ignore_eos,
    )
    params.check()  # a wrong option is told before the model is loaded
    with InferenceEngine.from_config(config, _say) as engine:
        generation = engine.prepare(text, params)
        print(text, end="", flush=True)
        for piece in engine.stream(generation):
            print(piece, end="", flush=True)
        print()


@app.command()
@with_settings("model", "engine", model=_optional_model())
def chat(
    config: Config,
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is to be.")] = None,
    temperature: Annotated[float, typer.Option(metavar="NUMBER", help="Of sampling; 0 is greedy.")] = 0.7,
    top_p: Annotated[
        float, typer.Option(metavar="NUMBER", help="Sample from the likeliest tokens of this mass.")
    ] = 0.95,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="INTEGER", help="Most tokens of an answer. [default: as many as fit]")
    ] = None,
) -> None:
    """Talk with a model; /help shows what else can be typed.

    Where the input is no terminal, each line is a question.
    """
    from roseinfer.chat import ChatOptions, run_chat

    options = ChatOptions(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=config.seed, system=system)
    run_chat(config, options, _say)


@app.command()
@with_settings("model", *(knob.name for knob in knobs_of("engine") if knob.name != "seed"), "api_key")
def bench(
    config: Config,
    *,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As for serve; runs while it is measured.", show_default=False)
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="A running server; several are compared.")
    ] = None,
    workload: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="w1 to w5, or several: w1,w3. [default: all]")
    ] = None,
    requests: Annotated[int | None, typer.Option(metavar="INTEGER", help="Number of requests.")] = None,
    input_len: Annotated[int | None, typer.Option(metavar="INTEGER", help="Tokens of a prompt.")] = None,
    output_len: Annotated[int | None, typer.Option(metavar="INTEGER", help="Tokens of an answer.")] = None,
    shared_prefix_len: Annotated[
        int | None, typer.Option(metavar="INTEGER", help="Tokens that all prompts begin with.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="INTEGER", help="Requests at once.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="NUMBER", help="Requests per second, at random times.")] = None,
    repeats: Annotated[int, typer.Option(metavar="INTEGER", help="Of each workload.")] = 3,
    seed: Annotated[int, typer.Option(metavar="INTEGER", help="Of prompts and arrivals.")] = 0,
    json: Annotated[Path | None, typer.Option(metavar="PATH", help="File for all figures and times.")] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="Measure MODEL in this process.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where MODEL's steps spend their time.")] = False,
) -> None:
    """Measure a model here, or any server with OpenAI's completions.

    Workloads are greedy and streamed, every prompt is new. Options such as
    --requests change the workloads named, or make one of their own.
    """
    import dataclasses

    from roseinfer.bench import BenchOptions, choose_workloads, run_bench

    workloads = choose_workloads(
        workload or [],
        num_requests=requests,
        input_len=input_len,
        output_len=output_len,
        shared_prefix_len=shared_prefix_len,
        concurrency=concurrency,
        rate=rate,
    )
    options = BenchOptions(
        workloads=workloads,
        has_model=model is not None or not url,
        urls=url or [],
        repeats=repeats,
        seed=seed,
        json_file=json,
        with_http=not no_http,
        profile=profile,
    )
    run_bench(dataclasses.replace(config, model=model or config.model), options)


@app.command("inspect")
@with_settings("model", "engine", model=_model("MODEL", KNOBS["model"].help, is_required=True))
def inspect_model(config: Config) -> None:
    """Show a model's architecture, sizes and memory."""
    from roseinfer.report import model_report

    print(model_report(config, _say))


@app.command()
@with_settings("cache_dir", model=_model("NAME", "A catalogue name or a hub id.", is_required=True))
def pull(config: Config) -> None:
    """Fetch a model and print where it is."""
    from roseinfer.catalog import resolve_model

    print(resolve_model(config.model, config.models_dir, _say))


@app.command("list")
@with_settings("cache_dir")
def list_models(config: Config) -> None:
    """Show the catalogue: names that stand for models."""
    from roseinfer.report import catalog_report

    print(catalog_report(config.models_dir))


@app.command()
@with_settings("cache_dir", "device", "threads", "isa")
def doctor(config: Config) -> None:
    """Show what this machine offers to roseinfer."""
    from roseinfer.report import machine_report

    print(machine_report(config))
