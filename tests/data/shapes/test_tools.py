"""Tool definitions and tool calls, as services and trainers write them."""

import json

from tests.data.shapes.examples import SHAREGPT, WEATHER, assistant, faults, read, said, system, user

from likelier.records import Message


def test_openai_tools_and_calls(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    given = {"messages": [said("system", "Be brief."), said("user", "Cold?")], "tools": [WEATHER], "parallel_tool_calls": False}
    row = {
        "input": given,
        "preferred_output": [{"role": "assistant", "content": None, "tool_calls": [call]}],
        "non_preferred_output": [said("assistant", "No idea.")],
    }
    [pair], _ = read(tmp_path, row)
    assert pair.meta == {"tools": [WEATHER], "parallel_tool_calls": False}
    assert pair.prompt == (system("Be brief."), user("Cold?"))
    assert pair.chosen[0].extra["tool_calls"][0]["function"]["arguments"] == {"city": "Ulm"}
    for arguments in ("{", "[1]", 5):
        call["function"]["arguments"] = arguments
        [pair], _ = read(tmp_path, row)
        assert pair.chosen[0].extra["tool_calls"][0]["function"]["arguments"] == arguments, "a model's malformed call stays as it was"


def test_llama_factory_tools_and_calls(tmp_path):
    row = {
        **SHAREGPT,
        "conversations": [
            {"from": "human", "value": "Cold?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
            {"from": "observation", "value": "2 °C"},
        ],
        "system": "Be brief.",
        "tools": json.dumps([WEATHER["function"]]),
    }
    [pair], _ = read(tmp_path, row)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    assert pair.prompt == (system("Be brief."), user("Cold?"), assistant("", tool_calls=[call]), Message("tool", "2 °C"))
    assert pair.meta == {"tools": [WEATHER]}


def test_tools_as_text_are_read_in_any_shape(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "tools": json.dumps([WEATHER])}
    assert read(tmp_path, row)[0][0].meta == {"tools": [WEATHER]}
    assert faults(tmp_path, {**row, "tools": "["})[0][1].startswith("`tools` is text that is not JSON")
