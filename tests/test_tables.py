"""Tables and archives as people have them: what is found in each, and the line for each fault; the order of classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftvit.data.find.dataset import natural
from shiftvit.data.find.find import find_data
from shiftvit.errors import join_words
from trees import arrays, contents, fault, plant, saved

TABLE = "path,label\na.png,cat\nsub/b.png,dog\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", TABLE),
        ("t.csv", "\ufeff" + TABLE.replace("\n", "\r\n")),
        ("t.csv", TABLE.removeprefix("path,label\n")),
        ("t.csv", "id,Class, FILENAME ,score\n7,cat,a.png,1\n8,dog,sub/b.png,2"),
        ("t.CSV", TABLE.replace(",", ";")),
        ("t.tsv", TABLE.replace(",", "\t")),
        ("t.csv", 'image,target\n"a.png"," cat"\n\n ./sub/b.png , dog \n'),
    ],
)
def test_tables(tmp_path, name, text):
    plant(tmp_path, "a.png", "sub/b.png", "not/named.png")
    (tmp_path / name).write_bytes(text.encode())
    found = find_data(tmp_path / name)
    assert contents(found) == {"train": [("a.png", "cat"), ("sub/b.png", "dog")]}
    assert found.layout == f"{name[-3:].upper()} of path and label"


def test_a_table_with_splits_numbers_and_absolute_paths(tmp_path):
    plant(tmp_path, *(f"{number}.png" for number in range(5)))
    lines = ["path,label,split", "0.png,10,Train", "1.png,9,train", f"{tmp_path / '2.png'},9,TEST", "3.png,10,valid"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = find_data(tmp_path / "t.csv")
    assert found.class_names == ("9", "10")
    assert found.layout == "CSV of path, label and split"
    assert contents(found) == {
        "train": [("0.png", "10"), ("1.png", "9")],
        "validation": [("3.png", "10")],
        "test": [("2.png", "9")],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty; give a line of path and label"),
        (b"\n \n", "is empty"),
        ("path,label\na.png,caf\u00e9".encode("latin-1"), "is not UTF-8"),
        (b"a,b,c\n1,2,3", "has the columns a, b, c; name two of them path|file|filename|image and label|class|"),
        (b"path,name\na.png,cat", "has the columns path, name; name two"),
        (b"path,label\na.png,cat\nx.png,dog\ny.png,dog", "names 2 of 3 files that do not exist, the first '"),
        (b"picture,kind\na.png,cat\nb.png,dog", "if it is a header, name its columns path and label"),
        (b"path,label\na.png,cat\nb.png", "line 3 of"),
        (b"path,label\na.png,cat\nb.png, ", "has no label; give one"),
        (b"path,label,split\na.png,cat,holdout", "has the split 'holdout'; use train, validation or test"),
        (b"path,label,split\na.png,cat,test", "has no images for training"),
        (b"path,label\na.png,cat", "has one class, 'cat'"),
        (b"path,label,split\na.png,cat,train\nb.png,ox,test", "the class 'ox' of test"),
        (b'path,label\n"a.png,cat', "is not a readable table"),
        (b"path,label", "has no images for training"),
    ],
)
def test_a_line_for_each_fault_of_a_table(tmp_path, text, message):
    plant(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_bytes(text)
    assert message in fault(tmp_path / "t.csv")


def test_archives_of_splits(tmp_path):
    x, y = arrays()
    found = find_data(
        saved(tmp_path / "d.npz", x_train=x, y_train=y[:, None].astype(np.uint8), x_test=x[:2], y_test=y[:2], extra=y)
    )
    assert found.layout == "NumPy archive"
    assert found.class_names == ("0", "1")
    assert found.notes == ("arrays that are not used: extra",)
    train, test = found.splits["train"], found.splits["test"]
    np.testing.assert_array_equal(train.images, x)
    np.testing.assert_array_equal(train.labels, y)
    np.testing.assert_array_equal(test.images, x[:2])
    assert train.labels.dtype == np.int64
    assert train.paths[3] == "x_train[3]"
    assert test.paths == ["x_test[0]", "x_test[1]"]


def test_archives_of_images_labels_and_names(tmp_path):
    x, y = arrays()
    names = np.array(["zebra", "ant", "cow"])
    found = find_data(saved(tmp_path / "d.npz", images=x[..., 0], labels=y, class_names=names))
    assert found.class_names == ("zebra", "ant", "cow")  # the archive's numbers, so its order
    assert found.notes == ("train has no images of cow",)
    np.testing.assert_array_equal(found.splits["train"].images, np.repeat(x[..., :1], 3, axis=3))


X, Y = arrays()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": X.astype(np.float32), "labels": Y}, "images of '"),
        ({"images": X.astype(np.float32), "labels": Y}, "is float32 (6, 5, 4, 3); it must be uint8 (N, H, W, 3)"),
        ({"images": X[..., :2], "labels": Y}, "is uint8 (6, 5, 4, 2)"),
        ({"images": X[0, 0], "labels": Y}, "is uint8 (4, 3)"),
        ({"images": X[:0], "labels": Y[:0]}, "it must be more than nothing"),
        ({"images": X, "labels": Y[:5]}, "is int64 (5,); it must be whole numbers (6,), one for each of images"),
        ({"images": X, "labels": np.eye(6, dtype=int)}, "is int64 (6, 6)"),
        ({"images": X, "labels": Y / 2}, "is float64 (6,)"),
        ({"images": X, "labels": Y - 1}, "has the label -1; number the classes 0, 1, 2"),
        ({"images": X, "labels": Y * 900}, "go up to 900, and there are only 6 images; number the classes 0, 1, 2"),
        (
            {"images": X, "labels": Y * 2, "class_names": np.array(["a", "b"])},
            "go up to 2, and class_names has 2 names; number them 0..1",
        ),
        ({"images": X, "labels": Y, "class_names": np.array(["a", "a"])}, "not a list of different names"),
        ({"images": X, "labels": Y, "class_names": np.array([1, 2])}, "not a list of different names"),
        ({"images": X, "labels": Y * 0}, "has one class, '0'"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y * 3}, "the test labels of '"),
        ({"x": X, "y": Y}, "has no images for training; name its arrays x_train and y_train"),
        ({"images": X, "labels": np.array([None] * 6)}, "the array 'labels' of '"),
        ({"images": X, "labels": np.array([None] * 6)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_line_for_each_fault_of_an_archive(tmp_path, content, message):
    assert message in fault(saved(tmp_path / "d.npz", **content))


def test_files_that_are_no_archive(tmp_path):
    path = tmp_path / "d.npz"
    for data in (b"", b"PK\3\4", b"text", b"\x80\x04N."):
        path.write_bytes(data)
        assert "cannot be read (" in fault(path)
    whole = saved(tmp_path / "w.npz", images=X, labels=Y).read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        assert "cannot be read (" in fault(path)
    with path.open("wb") as stream:
        np.save(stream, X)
    assert "holds a single array" in fault(path)


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1))
def test_whole_numbers_sort_by_value(numbers):
    assert [int(text) for text in sorted(map(str, numbers), key=natural)] == sorted(numbers)


@given(st.lists(st.text(), min_size=1))
def test_natural_order_is_total_and_does_not_depend_on_the_order_before(texts):
    backwards = texts[::-1]
    assert sorted(texts, key=natural) == sorted(backwards, key=natural)
    assert len({natural(text) for text in texts}) == len(set(texts))


def test_natural_order_and_lists_read_well():
    texts = ["img10", "Img2", "img1", "a", "x" + "9" * 5000, "3"]
    assert sorted(texts, key=natural)[:5] == ["3", "a", "img1", "Img2", "img10"]
    assert [join_words(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
