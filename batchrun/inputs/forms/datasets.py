"""Rows as public datasets have them: Alpaca, ShareGPT and xLAM, as parts of a Responses request.

Raises `RowProblem`. Shapes: Stanford Alpaca, FastChat and LLaMA-Factory (`system`, `history`), and
Salesforce's xlam-function-calling-60k.
"""

from typing import Any

from batchrun.formats.json_text import kind_in_words, shown
from batchrun.inputs.forms.chat import chat_settings, input_items, with_settings
from batchrun.inputs.forms.tools import flat_tools, from_xlam, read_structure, tool_shape
from batchrun.inputs.rows import RowProblem
from batchrun.records import JsonObject

ALPACA_COLUMNS = frozenset({"instruction", "input", "system", "history"})
SHAREGPT_COLUMNS = frozenset({"conversations", "system"})
XLAM_COLUMNS = frozenset({"query", "tools"})


def is_alpaca(data: JsonObject) -> bool:
    """An instruction, and perhaps an input as text, which may be empty."""
    said = data.get("instruction")
    if type(said) is not str or not said.strip() or data.get("prompt") is not None:
        return False
    given = data.get("input")
    return given is None or type(given) is str


def is_xlam(data: JsonObject) -> bool:
    return type(data.get("query")) is str and data.get("tools") is not None


def from_alpaca(data: JsonObject) -> JsonObject:
    """The instruction, an empty line, and the input where there is one."""
    given = data.get("input") or ""
    text = f"{data['instruction']}\n\n{given}" if given.strip() else data["instruction"]
    before = [*_system(data), *_history(data.get("history"))]
    body: JsonObject = {"input": [*before, {"role": "user", "content": text}] if before else text}
    return with_settings(body, chat_settings(data))


def from_sharegpt(data: JsonObject) -> JsonObject:
    """The conversation; a column `system` comes first, unless the conversation has its own."""
    items = input_items(data["conversations"], "conversations")
    if not any(type(one) is dict and one.get("role") == "system" for one in items):
        items = [*_system(data), *items]
    return with_settings({"input": items}, chat_settings(data))


def from_xlam_row(data: JsonObject) -> JsonObject:
    """The query with its tools; the answers are for the one who compares."""
    settings = chat_settings({**data, "tools": None})
    tools = read_structure(data["tools"], "tools")
    if type(tools) is not list:
        raise RowProblem(f"`tools` is {shown(tools)}; it must be a list of tools")
    flat: list[Any] = []
    for at, tool in enumerate(tools):
        is_own = tool_shape(tool) is not None and "parameters" in tool
        made = [from_xlam(tool, f"tools[{at}]")] if is_own else flat_tools([tool])
        flat += made
    return with_settings({"input": data["query"], "tools": flat}, settings)


def _system(data: JsonObject) -> list[JsonObject]:
    said = data.get("system")
    if said is None or said == "":
        return []
    if type(said) is not str:
        raise RowProblem(f"`system` is {kind_in_words(said)}; it must be text")
    return [{"role": "system", "content": said}]


def _history(history: Any) -> list[JsonObject]:
    """Pairs of what was asked and answered before."""
    history = read_structure(history, "history") if history else []
    items: list[JsonObject] = []
    for at, pair in enumerate(history if type(history) is list else [history]):
        if type(pair) is not list or len(pair) != 2 or any(type(one) is not str for one in pair):
            raise RowProblem(f"history[{at}] is {shown(pair)}; it must be a question and an answer")
        items += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return items
