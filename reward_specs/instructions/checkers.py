"""The checkers of IFEval and IFBench, from the package `if_verifiable`."""

import functools
import importlib
import random
from collections.abc import Mapping
from types import ModuleType
from typing import Any
from unittest.mock import patch

REGISTRIES = {
    "ifeval": "if_verifiable.ifeval.instructions_registry",
    "ifbench": "if_verifiable.ifbench.instructions_registry",
}
LEFT_OUT = {
    "change_case:capital_word_frequency": "punkt_tab",
    "length_constraints:number_sentences": "punkt",
    "format:title_case": "punkt_tab",
    "ratio:stop_words": "stopwords",
    "words:keywords_specific_position": "punkt_tab",
    "words:start_verb": "averaged_perceptron_tagger_eng",
    "words:words_position": "punkt_tab",
}
"""Instructions whose checkers read NLTK data, and which: no package contains it, so their prompts are left out."""


def registry(benchmark: str) -> Mapping[str, Any]:
    """The checkers of a benchmark, by instruction id. Their language detection is deterministic."""
    return _library(benchmark).INSTRUCTION_DICT


def make(benchmark: str, name: str, arguments: Mapping[str, Any]) -> tuple[Any, bool]:
    """A checker, and whether it replaced arguments that it cannot use by others at random."""
    checker = registry(benchmark)[name](name)
    before = random.getstate()
    checker.build_description(**arguments)
    return checker, random.getstate() != before


def conflict(one: str, other: str) -> bool:
    """Whether IFEval's own table says that no answer can follow both instructions."""
    table = _library("ifeval").INSTRUCTION_CONFLICTS
    return other in table[one] or one in table[other]


@functools.cache
def _library(benchmark: str) -> ModuleType:
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    with patch.object(nltk, "download", lambda *what, **how: False):  # if_verifiable 0.1.2 downloads on import
        return importlib.import_module(REGISTRIES[benchmark])
