"""docs/guide/api.md lists what the code offers: nothing is missing, nothing is stale."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import fada_client
import pytest
from fada_client import client as blocking
from fada_client.errors import FadaError
from pydantic import BaseModel
from starlette.routing import Route, WebSocketRoute

import fada
from fada import local
from fada.cli import COMMANDS, PLUGIN_COMMANDS
from server.api import live, protocol, stream
from server.api.app import create_app
from server.broker import messages
from server.broker.attachment import RESUME_S
from server.errors import KINDS
from server.settings import Settings

_TEXT = (Path(__file__).parents[2] / "docs/guide/api.md").read_text()
PAGE = re.sub(r"^```.*?^```$", "", _TEXT, flags=re.MULTILINE | re.DOTALL)
BY_CORES = ("bench live", "--workers")  # its default is the machine's


def section(title: str) -> str:
    """From a heading to the next one of its level or above."""
    level, found = re.match(r"#+", title), re.search(rf"^{re.escape(title)}$", PAGE, re.MULTILINE)
    assert level is not None and found is not None, f"no heading {title!r}"
    rest = PAGE[found.end() :]
    end = re.search(rf"^#{{1,{len(level[0])}}} ", rest, re.MULTILINE)
    return rest if end is None else rest[: end.start()]


def table(text: str) -> list[list[str]]:
    """The cells of all rows but headers and rules."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    kept = [
        row
        for row, below in zip_longest(rows, rows[1:], fillvalue="")
        if not re.match(r"\| ---", row) and not re.match(r"\| ---", below)
    ]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in kept]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def allowed_range(schema: dict[str, Any]) -> str:
    kinds = schema.get("anyOf", [schema])
    bounds = next((kind for kind in kinds if "maximum" in kind), None)
    if bounds is not None:
        even = ", even" if bounds.get("multipleOf") == 2 else ""
        return f"{bounds['minimum']:.0f}–{bounds['maximum']}{even}"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if any("pattern" in kind for kind in kinds):
        return "`#rrggbb`"
    return "a name from `GET /models`"


# Defaults of options that are null where they are not given.
DERIVED = "the model's", "random", "the service's first", "the picture's own"


def test_every_option_with_its_default_and_range() -> None:
    schema = protocol.AnimationOptions.model_json_schema()["properties"]
    rows = {names(name)[0]: (default, allowed) for name, default, allowed, _ in
            table(section("## Options of an animation"))}  # fmt: skip
    assert {name: allowed for name, (_, allowed) in rows.items()} == {
        name: allowed_range(field) for name, field in schema.items()
    }
    for name, field in schema.items():
        default = rows[name][0]
        if field["default"] is None:
            assert default in DERIVED, name
        else:
            assert default.strip("`") == str(field["default"]), name


def test_every_path_and_method() -> None:
    app = create_app(Settings.model_validate({}), "redis://127.0.0.1:1")
    routers = [getattr(route, "original_router", None) for route in app.routes]  # of newer FastAPI
    routes = [*app.routes, *(route for router in routers if router for route in router.routes)]
    offered = {
        (method, route.path)
        for route in routes
        if isinstance(route, Route | WebSocketRoute)
        for method in getattr(route, "methods", None) or {"GET"}
        if not route.path.startswith("/static/")
        if method != "HEAD" or route.path.endswith("/video")  # others are the framework's
    }
    in_schema = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    headings = re.findall(r"^##+ .*`([A-Z]+) (/[^`]*)`$", PAGE, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(headings) == offered >= in_schema


@pytest.mark.parametrize(
    ("title", "document"),
    [
        ("### `GET /jobs/{job_id}`", protocol.JobView),
        ("### `POST /avatars`", protocol.AvatarView),
        ("### `POST /avatars`", protocol.FaceView),
        ("### `GET /models`", protocol.ModelList),
        ("### `GET /models`", protocol.ModelView),
        ("## Errors", protocol.ProblemView),
        ("## WebSocket `GET /stream`", protocol.LiveStart),
    ],
)
def test_every_field_of_a_document(title: str, document: type[BaseModel]) -> None:
    fields = set(document.model_fields) - {"options"}  # which have a table of their own
    assert fields <= set(names(section(title)))


def test_every_error_code() -> None:
    rows = [(int(status), names(code)[0]) for status, code, _ in table(section("## Errors"))]
    assert rows == [(kind.status, code) for code, kind in KINDS.items()]


def test_every_message_of_a_live_session() -> None:
    rows = {row[0]: row[-1] for row in table(section("## WebSocket `GET /stream`"))}
    sent = {name for cell in rows for name in names(cell) if cell.startswith("text `")}
    events = {
        fada_client.Ready,
        fada_client.Interrupted,
        fada_client.Done,
        fada_client.Fragment,
        fada_client.Motion,
    }
    assert sent == {
        "start",
        "resume",
        "resumed",
        "interrupt",
        "update",
        "state",
        "end",
        "error",
    } | {event.__name__.lower() for event in events}
    assert tuple(names(rows["text `update`"])) == messages.LIVE_OPTIONS
    for event in events:
        fields = {field.name for field in dataclasses.fields(event)} - {"data", "frames"}
        assert fields <= set(names(rows[f"text `{event.__name__.lower()}`"])), event


def test_every_limit_of_a_live_session() -> None:
    rows = [row for row in table(section("## WebSocket `GET /stream`")) if row[1][0].isdigit()]
    assert [int(re.split(r"[ ;]", value)[0]) for _, value in rows] == [
        stream._START_TIMEOUT_S,
        RESUME_S,
        live.MAX_PORTRAIT_BYTES,
        stream.MAX_TEXT_BYTES,
        stream.MAX_MESSAGE_BYTES,
        live.MAX_PENDING_S,
    ]
    text = section("## WebSocket `GET /stream`")
    assert all(
        f"{code}" in text
        for code in {1000, stream._POLICY_VIOLATION, *stream._CLOSE_CODES.values()}
    )


def signature(function: Any) -> str:
    """Names and defaults, without ``self`` and types."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]
    text = str(inspect.Signature(parameters))
    return text.replace("'", '"')


@pytest.mark.parametrize(
    "kind",
    [
        blocking.Client,
        blocking.Jobs,
        blocking.Animation,
        blocking.MotionAnimation,
        blocking.Stream,
        local.LocalClient,
    ],
)
def test_every_method_of_the_client(kind: type[Any]) -> None:
    methods = {
        f"{name}{signature(function)}"
        for name, function in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }
    if kind is blocking.Client:
        methods.add(f"Client{signature(kind)}")
    if kind is local.LocalClient:
        methods.add(f"load{signature(fada.load)}")
    title = "client.jobs" if kind is blocking.Jobs else kind.__name__
    rows = re.search(rf"^\| `{title}` \| \|$\n(?:\|.*\n)+", section("## Python"), re.MULTILINE)
    assert rows is not None
    listed = {name for row in table(rows[0]) for name in names(row[0]) if "(" in name}
    assert listed == methods


def test_every_field_of_a_raw_frame() -> None:
    fields = {field.name for field in dataclasses.fields(local.RawFrame)}
    assert fields <= set(names(section("### In the process")))


def test_the_awaited_client_has_the_same_methods() -> None:
    for kind in ("Client", "Animation", "MotionAnimation", "Stream"):
        ours, awaited = (
            {
                name: signature(function)
                for name, function in inspect.getmembers(one, inspect.isfunction)
                if not name.startswith("_") and name != "begin"
            }
            for one in (getattr(fada_client, kind), getattr(fada_client, f"Async{kind}"))
        )
        assert ours == awaited


def test_every_public_name_of_the_client() -> None:
    text = section("## Python")
    assert [name for name in fada_client.__all__ if f"`{name}" not in text] == []
    rows = {names(row[0])[0]: names(row[1]) for row in table(text) if row[0].count("`") == 2}
    for kind in FadaError.__subclasses__():
        assert rows[kind.__name__] == [kind.code]
    for name in (
        "Ready",
        "InitSegment",
        "Fragment",
        "Motion",
        "MotionFrame",
        "Interrupted",
        "Done",
        "Avatar",
        "Job",
        "Model",
    ):
        fields = dataclasses.fields(getattr(fada_client, name))
        assert rows[name] == [field.name for field in fields]


def leaves(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, Any]]:
    """A command, or its subcommands."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in nested:
        for sub, one in action.choices.items():
            yield from leaves(one, f"{name} {sub}")
    if not nested:
        yield name, parser


def shown(action: argparse.Action) -> str:
    value = action.default
    if action.required:
        return "required"
    if value is None or value is False or isinstance(value, Path):
        return ""
    if isinstance(value, range):
        return f"{value[0]}:{value[-1]}"
    parts = value if isinstance(value, tuple | list) else [value]
    return " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in parts)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_a_command(name: str) -> None:
    try:
        module = importlib.import_module(f"fada.cli.{COMMANDS[name].module}")
    except ModuleNotFoundError as error:
        pytest.skip(f"fada[{COMMANDS[name].extra}] is not installed: {error.name}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    for leaf, one in leaves(parser, name):
        level = "#" * (2 + len(leaf.split()))
        rows = {tuple(names(row[0])): row[1] for row in table(section(f"{level} `fada {leaf}`"))}
        wanted = {
            tuple(action.option_strings) or (str(action.metavar or action.dest),): shown(action)
            for action in one._actions
            if not isinstance(action, argparse._HelpAction)
        }
        if leaf == BY_CORES[0]:
            wanted[(BY_CORES[1],)] = rows[(BY_CORES[1],)] = ""
        assert rows == wanted


def test_no_command_that_does_not_exist() -> None:
    listed = re.findall(r"^### `fada ([\w-]+)`$", PAGE, re.MULTILINE)
    assert listed == [*COMMANDS, *PLUGIN_COMMANDS]
