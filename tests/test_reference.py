"""Whatever a user can set, call, read or be told is in docs/reference.md, as the code has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import typer.main
from document import hold
from pydantic_core import PydanticUndefined

from service import errors
from service.adapter.spec import ProblemCode, WarningCode
from service.cli.app import app
from service.settings import PREFIX, Settings

if TYPE_CHECKING:
    import enum

    from house import House

pytestmark = pytest.mark.anyio
DOCUMENT = "reference.md"


def test_settings() -> None:
    rows = []
    for name, field in Settings.model_fields.items():
        if name == "engine_args":
            continue
        default = "" if field.is_required() or field.default in {None, PydanticUndefined} else f"`{field.default}`"
        flag = f"`--{name.replace('_', '-')}`"
        rows.append([flag, f"`{PREFIX}{name.upper()}`", default, field.description or ""])
    hold(DOCUMENT, "settings", ["flag", "variable", "default", "what it does"], rows)


def test_commands() -> None:
    root: Any = typer.main.get_command(app)
    rows = []
    for name, command in sorted(root.commands.items()):
        parameters = [parameter for parameter in command.params if parameter.name != "help"]
        usage = [_usage(parameter) for parameter in parameters]
        rows.append([f"`loradock {' '.join([name, *usage])}`", command.get_short_help_str(limit=200)])
    hold(DOCUMENT, "commands", ["command", "what it does"], rows)


def test_errors() -> None:
    rows = [
        [f"`{error.code}`", str(int(error.status)), (error.__doc__ or "").partition("\n")[0]]
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.LoradockError) and error.code != "configuration"
    ]
    hold(DOCUMENT, "errors", ["code", "status", "when"], rows)


@pytest.mark.parametrize(("section", "codes"), [("problems", ProblemCode), ("warnings", WarningCode)])
def test_codes_are_described(section: str, codes: type[enum.StrEnum]) -> None:
    """The words are written by hand; what counts is that no code is missing and none is invented."""
    described = _first_cells(section)
    assert described == [f"`{code}`" for code in codes]


async def test_routes(house: House) -> None:
    """Of the whole OpenAPI document; the engine's own routes are the echo's and vLLM's together."""
    from importlib.util import find_spec

    operations: list[Any] = list(house.engine.operations)
    if find_spec("vllm"):
        from service.engine.openai_layer import OPERATIONS

        operations = list(OPERATIONS)
    engine = {operation.path for operation in house.engine.operations}
    routes = {
        f"`{method.upper()} {path}`": details.get("summary", "")
        for path, methods in house.app.openapi()["paths"].items()
        for method, details in methods.items()
        if path not in engine
    } | {f"`POST {operation.path}`": operation.summary for operation in operations}
    if not find_spec("vllm"):
        pytest.skip("without vLLM its routes aren't known")
    hold(DOCUMENT, "routes", ["route", "what it does"], [[route, routes[route]] for route in sorted(routes)])


async def test_metrics(house: House) -> None:
    await house.telemetry.page(house.engine.metrics)
    rows = [
        [f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type, family.documentation]
        for family in sorted(house.telemetry.registry.collect(), key=lambda family: family.name)
        if family.name.startswith("loradock_")
    ]
    hold(DOCUMENT, "metrics", ["series", "kind", "what it tells"], rows)


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return (parameter.name or "").upper()
    flag = parameter.opts[-1] if not parameter.secondary_opts else f"{parameter.opts[0]}/{parameter.secondary_opts[0]}"
    return f"[{flag}]" if parameter.is_flag else f"[{flag} {parameter.name.upper()}]"


def _first_cells(section: str) -> list[str]:
    from document import DOCS

    text = (DOCS / DOCUMENT).read_text()
    table = text.partition(f"<!-- {section} -->\n")[2].partition(f"<!-- /{section} -->")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]
