"""Python programs, judged test by test in `vpo_plugin.rewards.sandbox`: 1 for a passed test, 0 for a failed one.

A label is `{"tests": […], "function": str | None, "preamble": str, "solution": str | None}`. All tests of a label are
of one kind: `{"stdin", "stdout"}` (a script, judged by its output), `{"arguments", "returns"}` (a call of `function`
with JSON values) or `{"code"}` (code that calls `function` and raises on a wrong answer). The preamble holds imports
and helpers of the task, and runs before the program.
"""

import ast
import builtins
from decimal import Decimal, InvalidOperation
from typing import Any

from vpo_plugin.rewards.sandbox import CallTest, CodeTest, Limits, Outcome, StdinTest, returned, run_program

MAX_TESTS = 16
PARSED_CHARS = 20_000  # longer programs are compared as text: deep nesting can crash an older Python's parser
LIMITS = Limits(cpu_seconds=4, wall_seconds=30.0, program_cpu_seconds=16.0, program_wall_seconds=90.0)
KINDS = ({"stdin", "stdout"}, {"arguments", "returns"}, {"code"})


def label_check(label: object) -> None:
    """Raises ValueError, in one sentence, if a label is not as above."""
    if not isinstance(label, dict) or not isinstance(label.get("tests"), list):
        raise ValueError(f"A code label needs a list of 'tests'; this one is {str(label)[:80]!r}.")
    tests = label["tests"]
    if not 1 <= len(tests) <= MAX_TESTS or not all(isinstance(test, dict) for test in tests):
        raise ValueError(f"A code label's 'tests' are 1 to {MAX_TESTS} mappings, not {len(tests)}.")
    if tests[0].keys() not in KINDS or any(test.keys() != tests[0].keys() for test in tests):
        raise ValueError("A code label's tests all have 'stdin' and 'stdout', or 'arguments' and 'returns', or 'code'.")
    if "stdin" not in tests[0] and not isinstance(label.get("function"), str):
        raise ValueError("A code label whose tests call a function needs its name as 'function'.")
    for key in ("stdin", "stdout", "code"):
        if key in tests[0] and not all(isinstance(test[key], str) for test in tests):
            raise ValueError(f"A code label's '{key}' must be text.")


def count(label: dict[str, Any]) -> int:
    """The number of a label's tests: its objectives."""
    return len(label["tests"])


def score(candidate: str, label: dict[str, Any]) -> list[float]:
    """1 for each test that a program passes, else 0."""
    tests = [_test(test, label) for test in label["tests"]]
    outcomes = run_program(candidate, tests, preamble=label.get("preamble", ""), limits=LIMITS)
    return [float(_passed(outcome, test)) for outcome, test in zip(outcomes, label["tests"], strict=True)]


def _test(test: dict[str, Any], label: dict[str, Any]) -> StdinTest | CallTest | CodeTest:
    if "stdin" in test:
        return StdinTest(test["stdin"])
    if "code" in test:
        return CodeTest(label["function"], test["code"])
    return CallTest(label["function"], test["arguments"])


def _passed(outcome: Outcome, test: dict[str, Any]) -> bool:
    if outcome.status != "ok" or "code" in test:
        return outcome.status == "ok"
    if "stdout" in test:
        return same_output(outcome.output.decode(errors="replace"), test["stdout"])
    try:
        return bool(returned(outcome) == test["returns"])
    except (ValueError, RecursionError):
        return False


def same_output(printed: str, expected: str) -> bool:
    """Whether two outputs match, line by line, without trailing white space and empty lines at the end.

    Lines of numbers match if the numbers are exactly equal, such as `0.5` and `0.50`, as in LiveCodeBench.
    """
    lines, wanted = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, expected))
    return len(lines) == len(wanted) and all(a == b or _same_numbers(a, b) for a, b in zip(lines, wanted, strict=True))


def _same_numbers(printed: str, expected: str) -> bool:
    words, wanted = printed.split(), expected.split()
    if len(words) != len(wanted):
        return False
    try:
        numbers = [(Decimal(a), Decimal(b)) for a, b in zip(words, wanted, strict=True)]
    except InvalidOperation:
        return False
    return all(a.is_finite() and b.is_finite() and a == b for a, b in numbers)


def answers(label: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """The solution, if the label has one, passes every test."""
    solution = label.get("solution")
    return [(solution, [1.0] * count(label))] if solution else []


# ------------------------------------------------------------------------------------------------ duplicates


def canonical(candidate: str, label: dict[str, Any]) -> str:
    """A program's syntax tree without comments, docstrings and variable names; its text if it cannot be parsed."""
    try:
        if len(candidate) > PARSED_CHARS:
            return candidate
        tree = ast.parse(candidate)
        names = _new_names(tree)
        for node in ast.walk(tree):
            _normalize(node, names)
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return candidate


def _normalize(node: ast.AST, names: dict[str, str]) -> None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:] or [ast.Pass()]
    if isinstance(node, ast.Name):
        node.id = names.get(node.id, node.id)
    elif isinstance(node, ast.arg):
        node.arg, node.annotation = names.get(node.arg, node.arg), None
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node.returns = None
    elif isinstance(node, ast.Global | ast.Nonlocal):
        node.names = [names.get(name, name) for name in node.names]


def _new_names(tree: ast.Module) -> dict[str, str]:
    """New names for a program's variables, in order of appearance, the same name everywhere in the program.

    Names with other uses stay: builtins, attributes, keywords, functions, classes, imports. If the
    program can look up names at run time, all stay.
    """
    variables: dict[str, None] = {}
    kept = set(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                variables[node.id] = None
            elif node.id in ("eval", "exec", "globals", "locals", "vars", "getattr", "setattr"):
                return {}
        elif isinstance(node, ast.arg):
            variables[node.arg] = None
        elif isinstance(node, ast.alias):
            kept.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.keyword):
            kept.add(node.arg or "")
        else:
            kept.update(
                name for field in ("attr", "name", "rest") if isinstance(name := getattr(node, field, None), str)
            )
    return {name: f"v{number}" for number, name in enumerate(n for n in variables if n not in kept)}
