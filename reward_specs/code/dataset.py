"""Loaders of the code task: LiveCodeBench's format and HumanEval's."""

import ast
import base64
import binascii
import importlib.resources
import json
import pickletools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from reward_specs.code.code import MAX_TESTS
from vpo_plugin.rewards.data import read_dataset, shuffled

SHIPPED = "problems.jsonl"
PREAMBLE = """\
import bisect, collections, functools, heapq, itertools, math, operator, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
from builtins import *
"""
PACKED_BYTES = 256 << 20  # largest size of unpacked tests
TEST_CHARS = 100_000  # tests with more input and output are left out

# ------------------------------------------------------------------------------------------------ LiveCodeBench


def livecodebench(
    split: str, num_rows: int, seed: int, *, source: str | None = None, splits: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Problems in the format of livecodebench/code_generation_lite as `{"prompt", "label"}`.

    Args:
        source, splits: as in `vpo_plugin.rewards.data.read_dataset`; without a source, the few problems shipped here.

    Raises:
        ValueError: a row is not in this format; the message names the problem.
    """
    file = source or str(importlib.resources.files("reward_specs.code") / SHIPPED)
    for row in shuffled(read_dataset(file, split, splits=splits), num_rows, seed):
        try:
            yield {"prompt": _contest_prompt(row), "label": contest_label(row)}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"The problem {row.get('question_id')!r} cannot be used: {error}") from error


def _contest_prompt(row: Mapping[str, Any]) -> str:
    if row["starter_code"]:
        task = f"Complete this code; only what its function returns counts.\n\n{row['starter_code'].rstrip()}\n"
    else:
        task = "The program reads the input from standard input and prints the answer to standard output.\n"
    content = f"{row['question_title']}\n\n{row['question_content'].strip()}"
    return f"{content}\n\nWrite it in Python, with the standard library alone. {task}"


def contest_label(row: Mapping[str, Any]) -> dict[str, Any]:
    """The label of a LiveCodeBench row: its public tests, then its private ones, at most 16 in all.

    Raises ValueError if the row has no usable test, or tests in another format.
    """
    cases = read_cases(row["public_test_cases"]) + read_cases(row["private_test_cases"])
    small = [case for case in cases if len(case["input"]) + len(case["output"]) <= TEST_CHARS][:MAX_TESTS]
    if not small:
        raise ValueError(f"None of its {len(cases)} tests is shorter than {TEST_CHARS} characters.")
    function = (json.loads(row["metadata"] or "{}")).get("func_name")
    if function:
        tests = [
            {
                "arguments": [json.loads(line) for line in case["input"].split("\n") if line.strip()],
                "returns": json.loads(case["output"]),
            }
            for case in small
        ]
    else:
        tests = [{"stdin": case["input"], "stdout": case["output"]} for case in small]
    return {"function": function, "preamble": PREAMBLE, "tests": tests, "solution": row.get("solution")}


def read_cases(text: str) -> list[dict[str, str]]:
    """The tests that LiveCodeBench keeps as JSON text, or as base64 of zlib of a pickle of JSON text.

    The pickle is never loaded: it is read as a list of opcodes, and only those of a single string are allowed. Raises
    ValueError for anything else, and for more than PACKED_BYTES.
    """
    if not text.lstrip().startswith("["):
        text = _unpack(text)
    try:
        cases = json.loads(text)
    except RecursionError as error:
        raise ValueError("Its tests are nested too deeply.") from error
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise ValueError("Its tests are not a list of mappings.")
    if not all(isinstance(case.get(key), str) for case in cases for key in ("input", "output")):
        raise ValueError("Its tests do not all have an 'input' and an 'output' text.")
    return cases


_STRING_OPCODES = {"PROTO", "FRAME", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "MEMOIZE", "BINPUT", "STOP"}


def _unpack(text: str) -> str:
    try:
        unpacking = zlib.decompressobj()
        pickled = unpacking.decompress(base64.b64decode(text, validate=True), PACKED_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"Its packed tests are damaged: {error}.") from error
    if not unpacking.eof:
        raise ValueError(f"Its packed tests are cut off, or unpack to more than {PACKED_BYTES >> 20} MiB.")
    strings = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in _STRING_OPCODES:
            raise ValueError(f"Its packed tests hold a pickle of more than one string (opcode {opcode.name}).")
        if isinstance(argument, str):
            strings.append(argument)
    if len(strings) != 1:
        raise ValueError(f"Its packed tests hold {len(strings)} strings, not one.")
    return strings[0]


# ------------------------------------------------------------------------------------------------ HumanEval


def humaneval(
    split: str, num_rows: int, seed: int, *, source: str, splits: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Problems in HumanEval's format (`prompt`, `entry_point`, `canonical_solution`, `test`) as `{"prompt", "label"}`.

    `source` and `splits` are as in `vpo_plugin.rewards.data.read_dataset`. Raises ValueError for a row that is not in
    this format; the message names the problem.
    """
    for row in shuffled(read_dataset(source, split, splits=splits), num_rows, seed):
        try:
            yield {
                "prompt": f"Complete this Python function. Write all of the program, the given lines too.\n\n"
                f"{row['prompt'].rstrip()}\n",
                "label": function_label(row),
            }
        except (ValueError, KeyError, SyntaxError) as error:
            raise ValueError(f"The problem {row.get('task_id')!r} cannot be used: {error}") from error


def function_label(row: Mapping[str, Any]) -> dict[str, Any]:
    """The label of a HumanEval row: each assertion of its `check`, with the code before it, is a test, at most 16.

    The prompt's code beside the function (imports, helpers) is the preamble. Assertions that call nothing are left out.
    Raises ValueError if none is left.
    """
    given = ast.parse(row["prompt"])
    given.body = [node for node in given.body if getattr(node, "name", None) != row["entry_point"]]
    tests = [{"code": code} for code in split_check(row["test"], row["entry_point"])[:MAX_TESTS]]
    if not tests:
        raise ValueError("Its 'check' has no assertion about the function.")
    solution = row["canonical_solution"]
    return {
        "function": row["entry_point"],
        "preamble": ast.unparse(given),
        "tests": tests,
        "solution": row["prompt"] + solution if solution else None,
    }


def split_check(test: str, function: str) -> list[str]:
    """The tests in `def check(candidate)`: each assertion (or loop with assertions), after the code that it needs.

    Raises ValueError if there is no such function.
    """
    module = ast.parse(test)
    checks = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if len(checks) != 1 or len(checks[0].args.args) != 1:
        raise ValueError("Its 'test' does not define check(candidate).")
    needed = [node for node in module.body if node is not checks[0]]
    candidate = checks[0].args.args[0].arg
    if candidate != "candidate":
        needed.append(ast.parse(f"{candidate} = candidate").body[0])
    tests = []
    for node in checks[0].body:
        inside = list(ast.walk(node))
        if not any(isinstance(part, ast.Assert) for part in inside):
            needed.append(node)
        elif any(isinstance(part, ast.Name) and part.id in (candidate, function) for part in inside):
            tests.append(ast.unparse(ast.Module([*needed, node], [])))
    return tests
