"""`shiftvit predict`: output formats, kinds of input, exit statuses, streams, Ctrl-C and speed."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import command_line
from pace import measure_child, measure_import
from sample import load_sample
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.cli.predict import _find_truth, _index_classes
from shiftvit.cli.rows import Format, Writer
from shiftvit.figures.style import GREEN, RED
from shiftvit.inference.predict import Prediction

SAMPLES = sorted(str(path) for path in (PRETRAINED / "samples").rglob("*.png"))


def predict(*arguments, cwd, status=0, alone=False, **options):
    """Runs `shiftvit predict`: in this process, or with `alone` in a new one, which may have another environment."""
    if alone:
        command = [sys.executable, "-m", "shiftvit", "predict", *map(str, arguments)]
        answer = subprocess.run(command, cwd=cwd, capture_output=True, timeout=120, **options)
    else:
        answer = command_line.run("predict", *arguments, cwd=cwd, **options)
    assert answer.returncode == status, answer.stderr.decode()
    return answer


@pytest.fixture
def folder(tmp_path):
    """A folder with good images and every kind of bad file that is listed from a folder."""
    data = load_sample()
    place = tmp_path / "pictures"
    place.mkdir()
    for index in range(3):
        Image.fromarray(data.test.images[index]).save(place / f"good{index}.png")
    (place / "empty.jpg").write_bytes(b"")
    (place / "half.png").write_bytes((place / "good0.png").read_bytes()[:900])
    (place / "text.gif").write_text("no image")
    (place / "gone.webp").symlink_to("nowhere")
    (place / "notes.txt").write_text("not listed")
    os.mkfifo(place / "pipe.png")
    return place


BAD = ["empty.jpg", "gone.webp", "half.png", "pipe.png", "text.gif"]
GOOD = ["good0.png", "good1.png", "good2.png"]


def test_without_arguments_classifies_and_draws_the_samples(tmp_path):
    answer = predict(cwd=tmp_path, alone=True)
    lines = answer.stdout.decode().splitlines()
    assert len(lines) == 13
    assert [line.split()[0][-15:] for line in lines[1:]] == [path[-15:] for path in SAMPLES]
    assert "12 images in" in answer.stderr.decode()
    with Image.open(tmp_path / "predictions.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.slow
def test_one_image_costs_little_more_than_the_imports(tmp_path):
    """The whole process takes at most 1 s if the libraries that it needs take 0.2 s to import."""
    needed = measure_import("numpy", "PIL.Image", "onnxruntime", "pydantic")
    assert measure_child(lambda: predict(SAMPLES[0], cwd=tmp_path, alone=True)) < 5 * needed


def test_bad_file_becomes_an_error_row(folder, tmp_path):
    rows = [json.loads(line) for line in predict("pictures", "--format", "jsonl", cwd=tmp_path).stdout.splitlines()]
    assert [row["path"].removeprefix("pictures/") for row in rows] == sorted(BAD + GOOD)
    for row in rows:
        if row["path"].removeprefix("pictures/") in BAD:
            assert row.keys() == {"path", "error"}
            assert row["path"] in row["error"]
        else:
            assert row.keys() == {"path", "label", "confidence", "top"}
            assert row["top"][0] == [row["label"], row["confidence"]]
            assert len(row["top"]) == 5
    predict("pictures", "--strict", cwd=tmp_path, status=3)
    predict(*[folder / name for name in GOOD], "--strict", cwd=tmp_path)
    everything = predict("pictures", "--all-files", "--format", "jsonl", cwd=tmp_path).stdout.splitlines()
    # All regular files, but neither the broken link nor the pipe.
    found = {json.loads(line)["path"].removeprefix("pictures/") for line in everything}
    assert found == {*GOOD, "empty.jpg", "half.png", "text.gif", "notes.txt"}


@pytest.mark.usefixtures("folder")
def test_formats_agree(tmp_path):
    lines = [json.loads(line) for line in predict("pictures", "--format", "jsonl", cwd=tmp_path).stdout.splitlines()]
    assert json.loads(predict("pictures", "--format", "json", cwd=tmp_path).stdout) == lines
    out = tmp_path / "rows.csv"
    assert predict("pictures", "--format", "csv", "--top-k", "2", "--out", out, cwd=tmp_path).stdout == b""
    table = list(csv.DictReader(io.StringIO(out.read_text("utf-8"))))
    assert [row["path"] for row in table] == [row["path"] for row in lines]
    for row, line in zip(table, lines, strict=True):
        assert row["error"] == line.get("error", "")
        assert row["label"] == line.get("label", "")
        if "label" in line:
            assert [row["label_2"], float(row["confidence_2"])] == line["top"][1]
    screen = predict("pictures", cwd=tmp_path).stdout.decode().splitlines()
    assert len(screen) == 1 + len(lines)
    assert sum("error: " in line for line in screen) == len(BAD)


def test_stdin_is_an_image_or_a_list_of_paths(folder, tmp_path):
    content = (folder / "good0.png").read_bytes()
    (row,) = json.loads(predict("-", "--format", "json", cwd=tmp_path, input=content).stdout)
    assert row["path"] == "-"
    for separator in ("\n", "\r\n", "\0"):
        names = separator.join(f"pictures/{name}" for name in GOOD) + separator
        rows = json.loads(predict("-", "--format", "json", cwd=tmp_path, input=names.encode()).stdout)
        assert [entry["path"] for entry in rows] == [f"pictures/{name}" for name in GOOD]
    assert rows[0]["top"] == row["top"] or abs(rows[0]["confidence"] - row["confidence"]) < 1e-5
    assert b"standard input is empty" in predict("-", cwd=tmp_path, input=b"", status=2).stderr


@pytest.mark.usefixtures("folder")
def test_long_list_on_stdin_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("shiftvit.data.decode.images.MAX_BYTES", 40)
    names = "".join(f"pictures/{name}\n" for name in GOOD).encode()
    assert len(names) > 40
    rows = json.loads(predict("-", "--format", "json", cwd=tmp_path, input=names).stdout)
    assert [entry["path"] for entry in rows] == [f"pictures/{name}" for name in GOOD]
    monkeypatch.setattr("shiftvit.cli.inputs._LONGEST_LIST", 50)
    said = predict("-", cwd=tmp_path, input=names, status=2).stderr
    assert b"the list on standard input has more than 50 bytes; name folders or patterns instead" in said


def test_standard_input_has_its_name_wherever_it_stands(folder, tmp_path):
    half = (folder / "half.png").read_bytes()
    long = io.BytesIO()
    Image.new("L", (70_000, 1)).save(long, "png")
    rules = {half: "standard input is not a readable PNG", long.getvalue(): "standard input: an image of 1 x 70000"}
    for content, reason in rules.items():
        answer = predict("pictures/good0.png", "-", "--format", "jsonl", cwd=tmp_path, input=content)
        first, second = map(json.loads, answer.stdout.splitlines())
        assert (first["path"], second["path"]) == ("pictures/good0.png", "-")
        assert second["error"].startswith(reason)
        arguments = ["embed", "pictures/good0.png", "-", "--out", "x.npz"]
        answer = command_line.run(*arguments, cwd=tmp_path, input=content)
        assert f"skipped: {reason}" in answer.stderr.decode()
    command_line.run(*arguments, cwd=tmp_path, input=(folder / "good1.png").read_bytes())
    with np.load(tmp_path / "x.npz") as table:
        assert table["paths"].tolist() == ["pictures/good0.png", "-"]


def test_file_names_with_invalid_encodings_or_line_breaks(folder, tmp_path):
    odd = [os.fsencode(folder) + b"/\xff\xfe.png", os.fsencode(folder) + b"/two\nlines.png"]
    for name in odd:
        with open(name, "wb") as file:  # noqa: PTH123  (pathlib takes no bytes)
            file.write((folder / "good0.png").read_bytes())
    lines = predict("pictures", "--format", "jsonl", cwd=tmp_path).stdout.splitlines()
    paths = [json.loads(line)["path"] for line in lines]
    assert sum("\n" in path for path in paths) == 1
    assert len(lines) == len(BAD + GOOD) + 2
    assert len(predict("pictures", cwd=tmp_path).stdout.splitlines()) == 1 + len(lines)


def test_csv_quotes_every_line_break(folder, tmp_path):
    names = ["two\nlines.png", "carriage\rreturn.png", 'a "quote", and a comma.png']
    for name in names:
        shutil.copy(folder / "good0.png", tmp_path / name)
    text = predict(*names, "--format", "csv", cwd=tmp_path).stdout.decode()
    _, *rows = csv.reader(io.StringIO(text, newline=""))
    assert [row[0] for row in rows] == names
    assert {len(row) for row in rows} == {4}


def test_class_names_cannot_control_the_terminal():
    names = "c\x1b[31mat", "d\nog"
    result = Prediction("a.png", names[0], 0.5, tuple(zip(names, (0.5, 0.25), strict=True)), np.zeros(2, np.float32))
    stream = io.StringIO()
    with Writer(stream, Format.table, 2, (5, 12)) as writer:
        writer.write(result, names[1])
    _, row = stream.getvalue().splitlines()
    assert row.split() == ["a.png", r"c\x1b[31mat", "50.0%", r"d\nog", "25.0%", "(is", r"d\nog)"]


def test_grid_marks_right_and_wrong_predictions(tmp_path):
    data = load_sample()
    for index in range(20):
        place = tmp_path / "sorted" / ("cat" if index % 2 else data.class_names[data.test.labels[index]])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.test.images[index]).save(place / f"{index}.png")
    answer = predict("sorted", "-r", "--grid", "grid.png", cwd=tmp_path)
    assert "of 20 match their folder's name" in answer.stderr.decode()
    assert "(is cat)" in answer.stdout.decode()
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    errors = answer.stdout.decode().count("(is ")
    assert 0 < errors < 20
    for colour, count in ((RED, errors), (GREEN, 20 - errors)):
        drawn = (pixels == list(bytes.fromhex(colour[1:]))).all(axis=-1)
        # The frame of an image of 192 pixels is 3 pixels wide, so 3 rows above and 3 below are full.
        rows = np.lib.stride_tricks.sliding_window_view(drawn, 198, axis=1).all(axis=-1).sum()
        assert rows == 6 * count


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["gone.png"], "'gone.png' does not exist"),
        (["*.xyz"], "matches no file"),
        (["--model", "./cifar10"], "'./cifar10' does not exist; give a run folder"),
        (["--runtime", "tensorrt"], "there is no runtime 'tensorrt'"),
        (["--runtime", "litert"], ", not in litert"),
        (["--format", "xml"], "there is no format 'xml'; valid: csv, json, jsonl, table."),
        (["--batch-size", "0"], "batch_size=0 must be at least 1"),
        (["--top-k", "0"], "top_k=0 must be at least 1"),
        (["--out", "missing/rows.csv"], "cannot write 'missing/rows.csv'"),
        (["--out", "/dev/full"], "cannot write '/dev/full': No space left"),
        (["--grid", "missing/grid.png"], "cannot write 'missing/grid.png'"),
        (["--max-pixels", "0"], "max_pixels=0 must be at least 1"),
        (["--max-pixels", "-5"], "max_pixels=-5 must be at least 1"),
        (["--threads", "0"], "threads=0 must be at least 1"),
        (["--out", "rows.xlsx"], "'rows.xlsx' has no known suffix; use one of: .txt, none"),
        (["--out", "cat.png"], "'cat.png' has no known suffix"),
        (["--out", "rows.csv", "--format", "json"], "--format json and the suffix of 'rows.csv' contradict each other"),
        (["--out", "rows.json", "--format", "table"], "--format table and the suffix of 'rows.json' contradict"),
        (["--out", "."], "cannot write '.': it is a folder; name a file in it"),
        (["--grid", "grid.txt"], "'grid.txt' has no known suffix; use one of: .png"),
        (["--grid", "grid"], "'grid' has no known suffix"),
        (["--grid", "/dev/null"], "'/dev/null' has no known suffix"),
    ],
)
def test_usage_errors_have_no_traceback(arguments, fault, tmp_path):
    lines = predict(*arguments, cwd=tmp_path, status=2).stderr.decode().splitlines()
    assert fault in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_unknown_model_keeps_an_earlier_output(tmp_path):
    (tmp_path / "rows.csv").write_text("kept")
    predict("--model", "nowhere", "--out", "rows.csv", cwd=tmp_path, status=2)
    assert (tmp_path / "rows.csv").read_text() == "kept"


def test_list_on_stdin_is_not_overwritten(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(SAMPLES[:2]))
    with names.open() as stdin:
        answer = subprocess.run(
            [sys.executable, "-m", "shiftvit", "predict", "-", "--out", "names.txt"],
            stdin=stdin,
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
        )
    assert answer.returncode == 2
    assert answer.stderr == b"shiftvit: 'names.txt' is also read here, and would be overwritten; name another file\n"
    assert names.read_text() == "\n".join(SAMPLES[:2])


@pytest.mark.slow
def test_closed_pipe_ends_quietly(tmp_path):
    (tmp_path / "names").write_text("\n".join(SAMPLES * 300))
    command = f"{{ {sys.executable} -m shiftvit predict - --format jsonl < names; echo $? > status; }} | head -1"
    answer = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=120)
    assert len(answer.stdout.splitlines()) == 1
    assert b"Traceback" not in answer.stderr
    assert (tmp_path / "status").read_text() == "0\n"


@pytest.mark.slow
def test_ctrl_c_keeps_the_rows_and_reports_progress(tmp_path):
    out = tmp_path / "rows.json"
    names = "\n".join(SAMPLES * 5000).encode()
    command = [sys.executable, "-m", "shiftvit", "predict", "-", "--format", "json", "--out", str(out)]
    child = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdin.write(names)
    child.stdin.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.exists() and out.stat().st_size > 20_000):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    notices = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(30) == 130
    assert "stopped after" in notices
    assert "of 60,000 images" in notices
    rows = json.loads(out.read_text("utf-8"))
    assert 0 < len(rows) < 60_000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    """Ten times as many files take at most 20 MB more."""
    program = (
        "import resource, sys; from shiftvit.cli import main;"
        "status = main._run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    peaks = []
    for times in (40, 400):
        names = "\n".join(SAMPLES * times).encode()
        command = [
            sys.executable,
            "-c",
            program,
            "predict",
            "-",
            "--format",
            "csv",
            "--out",
            str(tmp_path / "rows.csv"),
        ]
        answer = subprocess.run(command, input=names, capture_output=True, timeout=120, check=True)
        peaks.append(int(answer.stderr.splitlines()[-1]) / 1024)
        assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + len(SAMPLES) * times
    assert peaks[1] - peaks[0] < 20


@pytest.mark.slow
def test_suffix_chooses_the_format(tmp_path):
    heads = {}
    for name in ("rows.csv", "rows.json", "rows.jsonl", "rows.txt", "rows", "ROWS.CSV"):
        predict(SAMPLES[0], "--out", name, cwd=tmp_path)
        heads[name] = (tmp_path / name).read_text("utf-8")[:9]
    table = heads["rows.txt"]
    assert table.startswith("image ")
    assert heads == {
        "rows.csv": "path,labe",
        "ROWS.CSV": "path,labe",
        "rows.json": '[\n {"path',
        "rows.jsonl": '{"path": ',
        "rows.txt": table,
        "rows": table,
    }
    predict(SAMPLES[0], "--out", "rows.txt", "--format", "csv", cwd=tmp_path)
    assert (tmp_path / "rows.txt").read_text("utf-8").startswith("path,label")
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")):
        predict(SAMPLES[0], "--grid", name, cwd=tmp_path)
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind


def test_inputs_and_pictures_are_not_overwritten(folder, tmp_path):
    good = (folder / "good0.png").read_bytes()
    (folder / "suffixless").write_bytes(good)
    for arguments, message in (
        (["pictures", "--grid", "pictures/good0.png"], b"is also read here, and would be overwritten"),
        (["pictures/suffixless", "--out", "pictures/suffixless"], b"is also read here"),
        (["pictures/good1.png", "--out", "pictures/suffixless"], b"is a picture, and would be overwritten by text"),
    ):
        assert message in predict(*arguments, cwd=tmp_path, status=2).stderr
    assert (folder / "good0.png").read_bytes() == (folder / "suffixless").read_bytes() == good


def test_grid_holds_small_copies_of_large_pictures(tmp_path, monkeypatch):
    """Sixty photographs at their full size would take gigabytes."""
    Image.new("RGB", (1600, 400), "red").save(tmp_path / "large.png")
    drawn = []
    monkeypatch.setattr("shiftvit.figures.grid.draw_predictions", lambda tiles, *_: drawn.extend(tiles))
    predict("large.png", SAMPLES[0], "--grid", "grid.png", cwd=tmp_path)
    assert [tile.image.shape for tile in drawn] == [(48, 192, 3), (192, 192, 3)]


def test_folder_names_its_class_in_every_form_of_unicode():
    classes = _index_classes(("\u00c4pfel", "e\u0301clair"))  # composed, decomposed
    names = ["fruit/A\u0308pfel/1.jpg", "\u00e9clair/1.jpg", "e\u0301clair/1.jpg", "1.jpg", "pfel/1.jpg"]
    found = [_find_truth(name, classes) for name in names]
    assert found == ["\u00c4pfel", "e\u0301clair", "e\u0301clair", None, None]


@pytest.mark.slow
def test_grid_obeys_max_pixels(tmp_path):
    """The picture has more pixels than the default limit; `--max-pixels` raises it for the grid too."""
    picture = Image.new("1", (8000, 8100))
    picture.save(tmp_path / "large.png")
    answer = predict("large.png", "--grid", "grid.png", "--format", "json", cwd=tmp_path)
    assert "max_pixels" in json.loads(answer.stdout)[0]["error"]
    assert not (tmp_path / "grid.png").exists()
    predict("large.png", "--grid", "grid.png", "--max-pixels", "70000000", cwd=tmp_path)
    assert (tmp_path / "grid.png").exists()


# Predicts the names on standard input once for each format, with a form feed between the outputs.
PREDICT_IN_FORMATS = """
import io, sys
from shiftvit.cli.main import main
names = sys.stdin.buffer.read()
for number, kind in enumerate(sys.argv[1:]):
    if number:
        print("\\f")
    sys.stdin = io.TextIOWrapper(io.BytesIO(names))
    sys.argv = ["shiftvit", "predict", "-", "--format", kind]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16", "cp1252"])
def test_output_is_valid_in_every_encoding(encoding, tmp_path):
    names = ["K\xe4se.png", "\u732b.png", "\U0001f408.png", os.fsdecode(b"\xff.png"), 'quote".png']
    for name in names:
        shutil.copy(SAMPLES[0], tmp_path / name)
    stdin = os.fsencode("\0".join(names))
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0", "LC_ALL": "C"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    kinds = ("json", "jsonl", "csv", "table")
    command = [sys.executable, "-c", PREDICT_IN_FORMATS, *kinds]
    answer = subprocess.run(command, cwd=tmp_path, input=stdin, capture_output=True, timeout=120, env=environment)
    texts = answer.stdout.decode(encoding).split("\f\n")
    for kind, text in zip(kinds, texts, strict=True):
        if kind in ("json", "jsonl"):
            rows = json.loads(text) if kind == "json" else [json.loads(line) for line in text.splitlines()]
            assert [row["path"] for row in rows] == names
        else:
            assert len(text.splitlines()) == 1 + len(names)


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["predict", SAMPLES[0]], ["info"], ["info", "--json"], ["--help"]])
def test_full_disk_is_reported_without_traceback(command, unbuffered, tmp_path):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        answer = subprocess.run(
            [sys.executable, "-m", "shiftvit", *command],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert answer.returncode == 2
    lines = answer.stderr.decode().splitlines()
    assert lines[-1] == (
        "shiftvit: standard output cannot be written: No space left on device; free space, or redirect it elsewhere"
    )
    assert not [line for line in lines if "bug" in line or "Traceback" in line or "Exception" in line]


@pytest.mark.slow
def test_stdin_kind_is_detected_from_its_content(folder, tmp_path):
    """Lists that begin like pictures, lists with byte order marks, and pictures of several formats."""
    for name in ("BMW", "RIFF", "GIF89a", "II*", "P3 1"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "good0.png", tmp_path / name / "x.png")
        stdin = f"{name}/x.png\npictures/good1.png\n"
        (first, second) = json.loads(predict("-", "--format", "json", cwd=tmp_path, input=stdin.encode()).stdout)
        assert (first["path"], second["path"]) == (f"{name}/x.png", "pictures/good1.png")
        assert first["label"]
    for encoding in ("utf-8-sig", "utf-16"):
        stdin = "pictures/good0.png\r\npictures/gone.png\r\n".encode(encoding)
        rows = json.loads(predict("-", "--format", "json", cwd=tmp_path, input=stdin).stdout)
        assert [row["path"] for row in rows] == ["pictures/good0.png", "pictures/gone.png"]
        assert [*rows[0]][1:2] == ["label"]
        assert "No such file" in rows[1]["error"]
    for kind in ("TIFF", "BMP", "GIF", "WEBP", "JPEG", "AVIF"):
        buffer = io.BytesIO()
        with Image.open(folder / "good0.png") as picture:
            picture.save(buffer, kind, **({"big_tiff": True} if kind == "TIFF" else {}))
        (row,) = json.loads(predict("-", "--format", "json", cwd=tmp_path, input=buffer.getvalue()).stdout)
        assert row["path"] == "-"
        assert row["label"]
    half = (folder / "good0.png").read_bytes()[:900]
    (row,) = json.loads(predict("-", "--format", "json", cwd=tmp_path, input=half).stdout)
    assert row["error"].startswith("standard input is not a readable PNG")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 40,
        b"\0" * 5000,
        b"\0\0\0\x18ftypqt  \n\npictures/good0.png\n",
        b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'>\n<path d='M0 0'/>\n</svg>\n",
        b"\x1f\x8b\x08" + bytes(range(200)),
        b"pictures/nowhere.png\n",
        b"pictures/good0.png\0\0\0pictures/good0.png",
    ],
    ids=["bytes", "zeros", "movie", "pdf", "svg", "gzip", "missing", "empty paths"],
)
def test_invalid_stdin_is_one_line(content, tmp_path):
    (line,) = predict("-", cwd=tmp_path, input=content, status=2).stderr.decode().splitlines()
    assert "standard input is neither an image of a supported format nor a list of files that exist" in line


def test_empty_or_closed_stdin_fails(tmp_path):
    for stdin in (b"", b"\n\n", b" \r\n"):
        assert b"standard input is empty" in predict("-", cwd=tmp_path, input=stdin, status=2).stderr
    command = f"{sys.executable} -m shiftvit predict - <&-"
    answer = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=120)
    assert b"standard input is empty" in answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_unwritable_stderr_does_not_affect_results(stream, tmp_path):
    command = f"{sys.executable} -m shiftvit predict {SAMPLES[0]} --format json {stream}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    answer = subprocess.run(command, shell=True, cwd=tmp_path, env=buffered, stdout=subprocess.PIPE, timeout=120)
    assert answer.returncode == 0
    assert len(json.loads(answer.stdout)) == 1


def test_closed_stdout_is_one_line(tmp_path):
    command = f"{sys.executable} -m shiftvit predict {SAMPLES[0]} >&-"
    answer = subprocess.run(command, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, timeout=120)
    assert answer.returncode == 2
    assert answer.stderr.decode() == "shiftvit: standard output is closed; name a file with --out\n"
