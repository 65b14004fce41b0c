"""The names of splits in folders, tables, archives and Parquet files, and the names of files that are not data."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# A split is recognised by the letters of its name alone, as in `01_Train-Images`: one word, maybe beside these.
# None of these is made of others, so that a text matches in one way only and a long one is matched fast.
_SAYS_NOTHING = "(?:set|split|data|images?|imgs?|pictures?|photos?|samples?|files?|folders?|parts?|public|private)*"
_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "validation": ("validation", "validate", "valid", "val", "vld", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "tests"),
    # These mean test, as on the Hub, but validation if there is a test split and no validation split.
    "either": ("eval", "evaluation", "holdout", "heldout"),
}
_MEANING = {word: split for split, words in _WORDS.items() for word in words}
_NAME = re.compile(f"{_SAYS_NOTHING}({'|'.join(_MEANING)}){_SAYS_NOTHING}")

# Folders that systems and programs leave everywhere, in lower case. Hidden ones are left out anyway.
_LITTER = frozenset(
    {
        *("__macosx", "__pycache__", "lost+found", "found.000", "system volume information", "network trash folder"),
        *("temporary items", "$recycle.bin", "@eadir", "@tmp", "@recycle", "@sharebin"),
        *("@recently-snapshot", "#recycle", "#snapshot"),
    }
)


def name_splits(names: Iterable[str]) -> dict[str, str]:
    """Returns those of the names that stand for splits, name -> "train", "validation" or "test".

    The names are taken together: `eval` and `holdout` mean test, but validation beside a test split without a
    validation split.
    """
    found = {name: match for name in names if (match := _match(name)) is not None}
    either = "validation" if "test" in found.values() and "validation" not in found.values() else "test"
    return {name: either if split == "either" else split for name, split in found.items()}


def is_split(name: str) -> bool:
    """Returns whether a name stands for a split."""
    return _match(name) is not None


def is_neutral(name: str) -> bool:
    """Returns whether the name of a folder says nothing about its content, such as `images`, or repeats a split."""
    return is_split(name) or re.fullmatch(f"{_SAYS_NOTHING}", re.sub(r"[\W\d_]+", "", name.casefold())) is not None


def _match(name: str) -> str | None:
    match = _NAME.fullmatch(re.sub(r"[\W\d_]+", "", normalise_name(name).casefold()))
    return None if match is None else _MEANING[match[1]]


def normalise_name(text: str) -> str:
    """Returns text without spaces around it, in the form of Unicode (NFC) in which names are compared."""
    return unicodedata.normalize("NFC", text).strip()


def has_controls(text: str) -> bool:
    """Returns whether text has line breaks or control characters."""
    return any(unicodedata.category(letter) in {"Cc", "Zl", "Zp"} for letter in text)


def is_litter(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden, or is a folder that a system made for itself."""
    return name.startswith(".") or name.casefold() in _LITTER
