"""Find the candidates of a response, in one of three formats: numbered tags, fenced blocks, or a separator line.

Each parser takes any text without raising, in time linear in its length, and returns one entry for each of the
`candidates` slots: the stripped candidate, or None if it is missing.
"""

import functools
import re
from bisect import bisect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.token import Token

_OUTPUT = re.compile(r"\b(outputs?|prints?|printed|stdout|results?|returns?)\b[^.!?\w]*$", re.ASCII | re.IGNORECASE)
_THINK = re.compile(r"<(/?)think>", re.ASCII | re.IGNORECASE)


def answer_of(response: str, tag: str | None = None) -> str:
    """The answer of a response: the text after the last `</think>` and before a `<think>` that never closes.

    With `tag`, thoughts inside a candidate `<tag_s>…</tag_s>` belong to it and do not start a new answer.
    """
    marks = list(_THINK.finditer(response))
    if tag and marks:
        edges = [edge for _, start, end in _pairs(response, tag) for edge in (start, end)]
        marks = [mark for mark in marks if bisect(edges, mark.start()) % 2 == 0]
    start, end = 0, len(response)
    for mark in reversed(marks):
        if mark[1]:
            start = mark.end()
            break
        end = mark.start()
    return response[start:end] if marks else response


def opened_thought(prompt: str) -> str:
    """`<think>` if the policy's input ends with it, as chat templates of reasoning models do; otherwise nothing.

    The response then begins inside a thought, and if it is cut there, only this mark shows that it has no answer.
    """
    return "<think>\n" if prompt.rstrip().lower().endswith("<think>") else ""


def parse_candidates(response: str, tag: str, candidates: int) -> list[str | None]:
    """Candidate s is the text between `<tag_s>` and `</tag_s>`, in any case, anywhere in the response.

    The last complete pair of a slot wins, because echoes of the format and drafts stand before the answer. A pair
    runs from the nearest opening tag to its first closing tag. A pair with an opening tag inside does not count: tags
    are nested or unclosed, so the meaning is unclear. ValueError if `candidates` is below 1.
    """
    slots = _slots(candidates)
    for slot, start, end in _pairs(response, tag):
        if slot <= candidates:
            slots[slot - 1] = response[start:end].strip()
    return slots


@functools.cache
def _numbered(tag: str) -> re.Pattern[str]:
    return re.compile(rf"<(/?){re.escape(tag)}_(?:([1-9][0-9]{{0,6}})>)?", re.ASCII | re.IGNORECASE)


def _pairs(text: str, tag: str) -> list[tuple[int, int, int]]:
    """Slot, start and end of the content of each complete pair of tags, in text order."""
    pairs = []
    slot, start = "", 0  # of the latest opening tag
    for mark in _numbered(tag).finditer(text):
        if not mark[1]:
            slot, start = mark[2] or "", mark.end()
        elif slot and mark[2] == slot:
            pairs.append((int(slot), start, mark.start()))
            slot = ""
    return pairs


# ------------------------------------------------------------------------------------------------ fenced blocks


def parse_fenced(response: str, language: str, candidates: int) -> list[str | None]:
    """Candidate s is the s-th code block in the `language`. Fences follow CommonMark, or other text on their line.

    Language names are those of Pygments (`py`, `Python3`); a file name may follow after a colon. Blocks without a
    language count only if no block names one, and never if the words before them call them output. A block that is
    not closed is not a candidate. ValueError if `candidates` is below 1.
    """
    slots = _slots(candidates)
    tokens = [token for token in _fences(response) if _is_closed(token)]
    blocks = [(_language(token.info), token.content.strip()) for token in tokens]
    if any(name for name, _ in blocks):
        names = _names(language.lower())
        found = [text for name, text in blocks if name in names][:candidates]
    else:
        lines = re.sub(r"\r\n?", "\n", response).split("\n")
        programs = [token for token in tokens if token is tokens[0] or not _is_output(token, lines)]
        found = [token.content.strip() for token in programs][:candidates]
    slots[: len(found)] = found
    return slots


def _fences(text: str) -> "list[Token]":
    source = re.sub(r"\r\n?", "\n", text) + "\n"
    tokens = _markdown().block.parse(source, _markdown(), {}, []) or []
    return [token for token in tokens if token.type == "fence"]


def _is_closed(token: "Token") -> bool:
    assert token.map
    return token.map[1] - token.map[0] == token.content.count("\n") + 2


def _is_output(token: "Token", lines: list[str]) -> bool:
    """Whether the text before a block, on its line or the last line with words, says that the block is output."""
    assert token.map
    at = token.map[0]
    said = lines[at].partition("```")[0].strip(" \t>*-")
    while not said and at > 0:
        at -= 1
        said = lines[at].strip()
    return bool(_OUTPUT.search(said))


def _language(info: str) -> str:
    return re.split("[:,{]", (info.split() or [""])[0])[0].lower()


@functools.cache
def _names(language: str) -> set[str]:
    """All names of a language, in lower case."""
    from pygments.lexers import find_lexer_class_by_name
    from pygments.util import ClassNotFound

    try:
        return {language, *(alias.lower() for alias in find_lexer_class_by_name(language).aliases)}
    except ClassNotFound:
        return {language}


@functools.cache
def _markdown() -> "MarkdownIt":
    """Finds fences, also in lists and quotes; imported only if a specification uses fenced candidates."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("zero").enable(["blockquote", "code", "fence", "list"])
    # Without `>` a quote ends: a lazy line can only continue a paragraph, and reading further takes quadratic time.
    reader.block.ruler.before("code", "not_lazy", lambda state, line, last, silent: silent, {"alt": ["blockquote"]})
    reader.block.ruler.before("paragraph", "late_fence", _late_fence, {"alt": ["paragraph", "blockquote", "list"]})
    return reader


def _late_fence(state: "StateBlock", line: int, last: int, silent: bool) -> bool:
    """A markdown-it rule: a fence that opens after other text on its line, followed by at most a language."""
    from markdown_it.rules_block import fence

    text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]
    before = text.find("```")
    info = text[before:].lstrip("`")
    if before < 1 or "`" in info or len(info.split()) > 1:
        return False
    state.tShift[line] += before
    try:
        return fence(state, line, last, silent)
    finally:
        state.tShift[line] -= before


# ------------------------------------------------------------------------------------------------ other formats


def parse_separated(response: str, separator: str, candidates: int) -> list[str | None]:
    """Candidate s is the s-th part of the response, cut at lines that contain only the `separator`.

    An empty part is None. Text after the last slot is ignored. ValueError if `candidates` is below 1.
    """
    slots = _slots(candidates)
    cut = re.compile(rf"^[ \t]*{re.escape(separator)}[ \t\r]*$", re.MULTILINE)
    for slot, part in enumerate(cut.split(response, maxsplit=candidates)[:candidates]):
        slots[slot] = part.strip() or None
    return slots


def _slots(candidates: int) -> list[str | None]:
    if candidates < 1:
        raise ValueError(f"A response holds at least 1 candidate, not {candidates}.")
    return [None] * candidates


# ------------------------------------------------------------------------------------------------ inside a candidate


def texts_between(text: str, *tags: str) -> list[str | None]:
    """The stripped content of `<tag>…</tag>` inside a candidate, for each of the tags, which ignore case.

    The last complete pair of a tag wins, from the nearest opening tag to its first closing tag; None without a pair.
    """
    found: dict[str, str] = {}
    opened: dict[str, int] = {}
    for mark in _any_of(tags).finditer(text):
        tag = mark[2].lower()
        if not mark[1]:
            opened[tag] = mark.end()
        elif tag in opened:
            found[tag] = text[opened.pop(tag) : mark.start()].strip()
    return [found.get(tag.lower()) for tag in tags]


@functools.cache
def _any_of(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"<(/?)({'|'.join(map(re.escape, tags))})>", re.ASCII | re.IGNORECASE)
