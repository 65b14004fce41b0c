"""The lists of class names in exports, as other programs split them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftvit.exports.labels import join_labels

NAMES = st.text(st.sampled_from("abÄ猫_, \t\n\r\x85\u2028\xa0") | st.characters(), min_size=1, max_size=6)
# How the readers of labels.txt, of OpenVINO's model_info and of the entry in ONNX take them apart.
SPLITS = {"\n": str.splitlines, " ": str.split, ",": lambda text: [part.strip() for part in text.split(",")]}


@pytest.mark.parametrize("separator", SPLITS)
@given(labels=st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_list_gives_each_class_a_name_of_its_own_or_is_left_out(separator, labels):
    blank = "_" if separator == " " else " "
    expected = [blank.join(label.split()) for label in labels]
    text = join_labels(labels, separator)
    if text is not None:
        assert SPLITS[separator](text) == expected
        assert len(set(expected)) == len(labels)
    else:  # names merge, one is blank, or one holds the separator
        assert len(set(expected)) < len(labels) or "" in expected or any(separator in name for name in expected)


@pytest.mark.parametrize(
    ("labels", "separator", "text"),
    [
        (["salt, pepper", "cat"], ",", None),
        (["salt, pepper", "cat"], "\n", "salt, pepper\ncat"),
        (["salt, pepper", "cat"], " ", "salt,_pepper cat"),
        (["cat big", "cat_big"], " ", None),
        (["cat big", "cat_big"], "\n", "cat big\ncat_big"),
        (["line\nbreak", "cat"], "\n", "line break\ncat"),
        (["a\u2028b", "a b"], "\n", None),
        ([" ", "cat"], "\n", None),
    ],
)
def test_ambiguous_lists_are_left_out(labels, separator, text):
    assert join_labels(labels, separator) == text
