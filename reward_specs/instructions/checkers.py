"""The checkers of IFEval and IFBench, from the package `if_verifiable`."""

import functools
import importlib
from collections.abc import Mapping
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
    "words:start_verb": "averaged_perceptron_tagger_eng",
    "words:words_position": "punkt_tab",
}
"""Instructions whose checkers read NLTK data, and which: no package contains it, so their prompts are left out."""


@functools.cache
def registry(benchmark: str) -> Mapping[str, Any]:
    """The checkers of a benchmark, by instruction id. Their language detection is deterministic."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    with patch.object(nltk, "download", lambda *what, **how: False):  # if_verifiable 0.1.2 downloads on import
        return importlib.import_module(REGISTRIES[benchmark]).INSTRUCTION_DICT
