"""Realistic tables and archives: the images found in each, the message for each fault, and the order of classes."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attack import bounded_memory, write_liar
from shiftvit.data.find.dataset import make_natural_key
from shiftvit.data.find.find import find_data
from shiftvit.errors import join_words
from trees import list_contents, make_arrays, plant, read_fault, save_archive

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
    assert list_contents(found) == {"train": [("a.png", "cat"), ("sub/b.png", "dog")]}
    assert found.layout == f"{name[-3:].upper()} of path and label"


def test_table_with_splits_numeric_labels_and_absolute_paths(tmp_path):
    plant(tmp_path, *(f"{number}.png" for number in range(5)))
    lines = ["path,label,split", "0.png,10,Train", "1.png,9,train", f"{tmp_path / '2.png'},9,TEST", "3.png,10,valid"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = find_data(tmp_path / "t.csv")
    assert found.class_names == ("9", "10")
    assert found.layout == "CSV of path, label and split"
    assert list_contents(found) == {
        "train": [("0.png", "10"), ("1.png", "9")],
        "validation": [("3.png", "10")],
        "test": [("2.png", "9")],
    }


@pytest.mark.parametrize(
    ("head", "rows", "unused"),
    [
        ("phase,path,label,Subset", ["test,{},train", "train,{},test"], "phase"),
        ("path,label,phase,set,subset", ["{},test,train,7", "{},train,test,8"], "phase"),  # subset holds no splits
        ("subset,path,label,split", ["test,{},train", "train,{},test"], "subset"),
    ],
)
def test_of_several_columns_of_splits_the_first_known_name_counts(tmp_path, head, rows, unused):
    plant(tmp_path, *(f"{number}.png" for number in range(4)))
    lines = [rows[number // 2].format(f"{number}.png,{'ab'[number % 2]}") for number in range(4)]
    (tmp_path / "t.csv").write_text("\n".join([head, *lines]))
    found = find_data(tmp_path / "t.csv")
    assert list_contents(found) == {"train": [("0.png", "a"), ("1.png", "b")], "test": [("2.png", "a"), ("3.png", "b")]}
    assert found.notes == (f"columns that are not used: {unused}",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty; give a line of path and label"),
        (b"\n \n", "is empty"),
        ("path,label\na.png,caf\u00e9".encode("latin-1"), "is not UTF-8"),
        (b"a,b,c\n1,2,3", "has the columns a, b, c; rename two of them to path|file|filename|image and label|class|"),
        (b"path,name\na.png,cat", "has the columns path, name; rename two"),
        (b"path,label\na.png,cat\nx.png,dog\ny.png,dog", "names do not exist, such as '"),
        (b"picture,kind\na.png,cat\nb.png,dog", "if it is a header, name its columns path and label"),
        (b"path,label\na.png,cat\nb.png", "line 3 of"),
        (b"path,label\na.png,cat\nb.png, ", "has no label; give one"),
        (b"path,label,split\na.png,cat,fold 3", "has the split 'fold 3'; use train, validation or test"),
        (b"path,label,split\na.png,cat,test", "has no images for training"),
        (b"path,label\na.png,cat", "has one class, 'cat'"),
        (b"path,label,split\na.png,cat,train\nb.png,ox,test", "the class 'ox' of test"),
        (b'path,label\n"a.png,cat', "is not a readable table"),
        (b"path,label", "has no images for training"),
    ],
)
def test_faulty_tables_fail_with_one_line(tmp_path, text, message):
    plant(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_bytes(text)
    assert message in read_fault(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "text",
    [
        b"file_name,label\n0.png,a\n1.png,b\n2.png,c\n3.png,d\n",
        b"image_id;size, in cm;Class Name\n0;3,5;a\n1;4,5;b\n2;1,0;c\n3;2;d\n",
        b"sep=;\r\nimage;label\r\n0.png;a\r\n1.png;b\r\n2.png;c\r\n3.png;d\r\n",
        b"Image Path|category\n.\\0.png|a\n1.PNG|b\n./2.png|c\n3|d",
        b"0.png;a\n1.png;b\n2.png;c\n3.png;d\n",
        b"id\tlabel\n0\ta\n1\tb\n2\tc\n3\td\n",
        b'filename,label,,\n"0.png",a,,\n1.png,b\n2.png,c,\n3.png,"d",,\n',
        "image,label\n0.png,a\n1.png,b\n2.png,c\n3.png,d\n".encode("utf-16"),
    ],
)
def test_tables_written_by_other_programs(tmp_path, text):
    plant(tmp_path, *(f"{number}.png" for number in range(4)))
    (tmp_path / "t.csv").write_bytes(text)
    found = find_data(tmp_path / "t.csv")
    assert list_contents(found) == {"train": [(f"{number}.png", "abcd"[number]) for number in range(4)]}


def test_paths_written_by_other_systems(tmp_path):
    plant(tmp_path, "cat/caf\u00e9 1.JPG", "dog/1.png", "cat/2.jpg", "2/x.png")
    rows = ["cat\\Cafe\u0301 1.jpg,cat", "DOG\\1.PNG,dog", "cat/2,cat"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]), "utf-8")
    assert list_contents(find_data(tmp_path / "t.csv"))["train"] == [
        ("cat/caf\u00e9 1.JPG", "cat"),
        ("dog/1.png", "dog"),
        ("cat/2.jpg", "cat"),
    ]


def test_ambiguous_file_names_match_no_file(tmp_path):
    plant(tmp_path, "1.png", "1.jpg", "2.png", "3.png")
    (tmp_path / "t.csv").write_text("id,label\n1,a\n2,a\n3,b")
    found = find_data(tmp_path / "t.csv")
    assert found.notes == (f"files that do not exist: 1, such as {str(tmp_path / '1')!r}",)


def test_paths_may_be_relative_to_a_folder_beside_the_table(tmp_path):
    plant(tmp_path, *(f"{folder}/{number}.png" for folder in ("train", "test") for number in range(4)))
    (tmp_path / "train.csv").write_text("id,breed_is,label\n0,x,a\n1,x,b\n2,x,a\n3,x,b")
    found = find_data(tmp_path / "train.csv")
    assert [path for path, _ in list_contents(found)["train"]] == [f"train/{number}.png" for number in range(4)]
    assert found.notes == ("paths are relative to train/",)
    (tmp_path / "train.csv").rename(tmp_path / "labels.csv")  # now it is unclear which folder is meant
    fault = read_fault(tmp_path / "labels.csv")
    assert fault.startswith("4 of the 4 files that ")
    assert "names do not exist" in fault


def test_missing_files_are_counted_and_named(tmp_path):
    plant(tmp_path, *(f"{number}.png" for number in range(6)))
    lines = [f"{number}.png,{'ab'[number % 2]}" for number in range(10)]
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *lines]))
    found = find_data(tmp_path / "t.csv")
    first = join_words([repr(str(tmp_path / f"{number}.png")) for number in (6, 7, 8)])
    assert found.notes == (f"files that do not exist: 4, such as {first}",)
    (tmp_path / "0.png").unlink()
    assert read_fault(tmp_path / "t.csv").startswith(
        f"5 of the 10 files that {str(tmp_path / 't.csv')!r} (read with commas between cells and path in 'file' and "
        f"label in 'label') names do not exist, such as {str(tmp_path / '0.png')!r}, {str(tmp_path / '6.png')!r} and "
    )


def test_repeated_rows_are_merged_unless_they_disagree(tmp_path):
    plant(tmp_path, "a.png", "b.png")
    table = tmp_path / "t.csv"
    table.write_text("path,label\na.png,x\n./a.png,x\nb.png,y\nsub/../b.png,y\na.png,x")
    (tmp_path / "sub").mkdir()
    found = find_data(table)
    assert list_contents(found) == {"train": [("a.png", "x"), ("b.png", "y")]}
    assert found.notes == ("rows that repeat an image: 3",)
    table.write_text("path,label\na.png,x\nb.png,y\n./a.png,y")
    assert "a.png' with the labels 'x' and 'y'; keep one of the rows" in read_fault(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        table.write_text(f"path,label\na.png,x\nb.png,y\n{tmp_path / 'a.png'},x")
        assert len(find_data("t.csv").train) == 2
        table.write_text(f"path,label\na.png,x\nb.png,y\n{tmp_path / 'a.png'},y")
        assert "with the labels 'x' and 'y'; keep one of the rows" in read_fault("t.csv")
    table.write_text("path,label,split\na.png,x,train\nb.png,y,train\na.png,x,test")
    assert "a.png' with the splits 'train' and 'test'; keep one of the rows" in read_fault(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,x\nb.png,y, z", "line 2 of '{}' (read with commas between cells and no header) has 3 cells and the"),
        ("path,label\na.png,x\nb.png,y, z", "first line 2: 'b.png | y |  z'; quote a cell that contains the"),
        ("path,label,Label\na.png,x,1\nb.png,y,2", "has two columns 'label'; rename the one that is not label"),
        ("path;size, cm\na.png;1\nb.png;2", "(read with semicolons between cells) has the columns path, size, cm;"),
    ],
)
def test_messages_say_how_the_table_was_read(tmp_path, text, message):
    plant(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text(text)
    assert message.format(tmp_path / "t.csv") in read_fault(tmp_path / "t.csv")


def test_archive_with_splits(tmp_path):
    x, y = make_arrays()
    found = find_data(
        save_archive(
            tmp_path / "d.npz", x_train=x, y_train=y[:, None].astype(np.uint8), x_test=x[:2], y_test=y[:2], extra=y
        )
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


def test_archive_with_images_labels_and_class_names(tmp_path):
    x, y = make_arrays()
    names = np.array(["zebra", "ant", "cow"])
    found = find_data(save_archive(tmp_path / "d.npz", images=x[..., 0], labels=y, class_names=names))
    assert found.class_names == ("zebra", "ant", "cow")  # the archive numbers the classes, so its order is kept
    assert found.notes == ("train has no images of cow",)
    np.testing.assert_array_equal(found.splits["train"].images, np.repeat(x[..., :1], 3, axis=3))


X, Y = make_arrays()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": X.astype(np.float32), "labels": Y}, "images of '"),
        ({"images": X.astype(np.float32), "labels": Y}, "is float32 (6, 5, 4, 3); it must be uint8 (N, H, W, 3)"),
        ({"images": X[..., :2], "labels": Y}, "is uint8 (6, 5, 4, 2)"),
        ({"images": X[0, 0], "labels": Y}, "is uint8 (4, 3)"),
        ({"images": X[:0], "labels": Y[:0]}, "it must not be empty"),
        ({"images": X, "labels": Y[:5]}, "is int64 (5,); it must be whole numbers (6,), one for each of images"),
        ({"images": X, "labels": np.eye(6, dtype=int)}, "is int64 (6, 6)"),
        ({"images": X, "labels": Y / 2}, "is float64 (6,)"),
        ({"images": X, "labels": Y - 1}, "has the label -1; number the classes 0, 1, 2"),
        ({"images": X, "labels": Y * 900}, "go up to 900, and there are 6 images; number the classes 0, 1, 2"),
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
def test_faulty_archives_fail_with_one_line(tmp_path, content, message):
    assert message in read_fault(save_archive(tmp_path / "d.npz", **content))


def test_files_that_are_not_archives_fail(tmp_path):
    path = tmp_path / "d.npz"
    for data in (b"", b"PK\3\4", b"text", b"\x80\x04N."):
        path.write_bytes(data)
        assert "cannot be read (" in read_fault(path)
    whole = save_archive(tmp_path / "w.npz", images=X, labels=Y).read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        assert "cannot be read (" in read_fault(path)
    with path.open("wb") as stream:
        np.save(stream, X)
    assert "holds a single array" in read_fault(path)


def test_archive_that_lies_about_its_size_fails(tmp_path):
    write_liar(tmp_path / "d.npz", zipfile.ZIP_LZMA, "images.npy")
    with bounded_memory():
        fault = read_fault(tmp_path / "d.npz")
    assert "has no images for training" in fault  # nothing is unpacked without labels
    save_archive(tmp_path / "w.npz", images=X, labels=Y)
    with zipfile.ZipFile(tmp_path / "w.npz") as whole, zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr("labels.npy", whole.read("labels.npy"))
    with bounded_memory():
        fault = read_fault(tmp_path / "d.npz")
    assert "the array 'images' of '" in fault
    assert "another method than deflate" in fault


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1))
def test_integers_sort_by_value(numbers):
    assert [int(text) for text in sorted(map(str, numbers), key=make_natural_key)] == sorted(numbers)


@given(st.lists(st.text(), min_size=1))
def test_natural_order_is_total_and_independent_of_the_input_order(texts):
    backwards = texts[::-1]
    assert sorted(texts, key=make_natural_key) == sorted(backwards, key=make_natural_key)
    assert len({make_natural_key(text) for text in texts}) == len(set(texts))


def test_examples_of_natural_order_and_joined_words():
    texts = ["img10", "Img2", "img1", "a", "x" + "9" * 5000, "3"]
    assert sorted(texts, key=make_natural_key)[:5] == ["3", "a", "img1", "Img2", "img10"]
    assert [join_words(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
