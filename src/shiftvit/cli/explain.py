"""`shiftvit explain`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftvit import files
from shiftvit.backend import list_installed_backends
from shiftvit.cli import inputs
from shiftvit.cli.settings import prepare_backend
from shiftvit.cli.tables import Json, list_examples, print_json, show
from shiftvit.errors import ShiftViTError, notice, report_skipped, suggest

if TYPE_CHECKING:
    from shiftvit.bundle.bundle import Bundle
    from shiftvit.bundle.metadata import Metadata

METHODS = {
    "grad-cam": ("grad_cam",),
    "occlusion": ("occlusion",),
    "both": ("grad_cam", "occlusion"),
    "cam": ("cam",),
}
_TITLES = {"grad_cam": "Grad-CAM", "occlusion": "occlusion", "cam": "class activation"}
# The most images in the figure; more would be hard to read.
_SHOWN = 24


app = typer.Typer()


@app.command(
    epilog=list_examples(
        "shiftvit explain",
        "shiftvit explain photos/cat.jpg --class dog --out why.png",
        "shiftvit explain photos/ --method cam --json",
        "shiftvit explain '*.png' --model runs/mine --method grad-cam --stage P2",
    )
)
def explain(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE|DIR|GLOB]...",
            help="Image files, folders or patterns (default: the sample images that come with shiftvit).",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Run folder, bundle or model name.")] = "cifar10",
    method: Annotated[
        str | None,
        typer.Option(
            help="grad-cam, occlusion, both, or cam, the class activation map, which needs no framework "
            "(default: both, or cam if no framework is installed)."
        ),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Class to explain (default: the predicted one).")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Stage for Grad-CAM, such as P2 (default: the last).")] = None,
    patch: Annotated[
        int | None,
        typer.Option(help="Side of the occluding square in pixels (default: a quarter of the image's side)."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Figure to write: .png, .pdf, .svg, .jpg or .webp.")] = Path(
        "explain.png"
    ),
    recursive: inputs.Recursive = False,
    all_files: inputs.AllFiles = False,
    as_json: Json = False,
) -> None:
    """Show which parts of an image a prediction depends on."""
    from shiftvit.bundle.bundle import Bundle
    from shiftvit.bundle.stored.find import PRETRAINED
    from shiftvit.data.find.listing import list_images
    from shiftvit.figures.style import ENDINGS

    if method is None:
        method = "both" if list_installed_backends() else "cam"
    if method not in METHODS:
        raise ShiftViTError(f"there is no method {method!r}; {suggest(method, METHODS)}")
    for option, value, needed in (("--stage", stage, "grad-cam"), ("--patch", patch, "occlusion")):
        if value is not None and method not in (needed, "both"):
            raise ShiftViTError(f"{option} {value} needs --method {needed} or both; leave out {option}")
    # Report mistakes at once, before a framework is loaded.
    names = list_images(paths or [str(PRETRAINED / "samples")], recursive=recursive or not paths, all_files=all_files)
    files.check_file(out, ENDINGS, inputs=names)
    bundle = Bundle.load(model)
    if class_name is not None and class_name not in bundle.labels:
        raise ShiftViTError(f"the model has no class {class_name!r}; {suggest(class_name, bundle.labels)}")
    rows, pixels = _explain(bundle, model, names, METHODS[method], class_name, stage, patch)
    _draw(rows[:_SHOWN], pixels, out)
    if as_json:
        print_json([_make_json_row(row) for row in rows])
    else:
        title = "What the predictions depend on (peak: row, column in pixels)"
        show([_make_table_row(row) for row in rows], title)
    left = f" (the first {_SHOWN} of {len(rows)} images)" if len(rows) > _SHOWN else ""
    notice(f"figure: {out}{left}")


def _explain(
    bundle: "Bundle",
    model: str,
    names: list[str],
    methods: tuple[str, ...],
    class_name: str | None,
    stage: str | None,
    patch: int | None,
) -> tuple[list[dict[str, Any]], Any]:
    """Returns a row for each image that can be read, and the preprocessed images, uint8 (N, h, w, 3)."""
    import numpy as np

    from shiftvit.bundle.metadata import make_metadata
    from shiftvit.evaluation.explain import grad_cam, occlusion, predict_probabilities
    from shiftvit.evaluation.metrics import check_finite
    from shiftvit.inference.explainer import Explainer

    metadata = make_metadata(bundle)
    names, pixels = _read_images(names, metadata)
    if methods == ("cam",):
        explainer = Explainer.from_pretrained(model)
        answers, features = explainer.run(pixels)
    else:
        prepare_backend()
        network, images = bundle.build("float32"), metadata.preprocess.normalised(pixels)
        answers = predict_probabilities(network, images, temperature=bundle.temperature)
    check_finite(answers, f"the model {model!r}", names)
    predicted = answers.argmax(axis=1)
    chosen = predicted if class_name is None else np.full(len(names), bundle.labels.index(class_name))
    maps = {}
    if "cam" in methods:
        maps["cam"] = explainer.compute_heat(features, chosen)
    if "grad_cam" in methods:
        maps["grad_cam"] = grad_cam(network, images, chosen, stage)
    if "occlusion" in methods:
        side = max(1, min(images.shape[1:3]) // 4) if patch is None else patch
        maps["occlusion"] = occlusion(
            network, images, chosen, patch=side, stride=max(1, side // 2), temperature=bundle.temperature
        )
    rows = []
    for index, name in enumerate(names):
        row: dict[str, Any] = {
            "path": name,
            "label": bundle.labels[predicted[index]],
            "confidence": round(float(answers[index, predicted[index]]), 6),
            "class": bundle.labels[chosen[index]],
            "probability": round(float(answers[index, chosen[index]]), 6),
        }
        for key, heat in maps.items():
            row[key] = {"peak": _find_peak(heat[index], pixels.shape[1:3]), "map": heat[index]}
        rows.append(row)
    return rows, pixels


def _read_images(names: list[str], metadata: "Metadata") -> tuple[list[str], Any]:
    """Returns the names of the readable images, and these images preprocessed, (N, h, w, 3). Reports the others."""
    import numpy as np

    from shiftvit.inference.batches import stream_pixels
    from shiftvit.inference.sources import Failure

    items = [item for batch in stream_pixels(names, metadata) for item in batch]
    faults = [item.error for item in items if isinstance(item, Failure)]
    readable = [item for item in items if not isinstance(item, Failure)]
    if not readable:
        raise ShiftViTError(faults[0])
    report_skipped(faults)
    return [name for name, _ in readable], np.stack([pixels for _, pixels in readable])


def _find_peak(heat: Any, size: tuple[int, int]) -> list[float] | None:
    """Returns [row, column] of the map's largest value, in preprocessed pixels; None if it is not above 0."""
    import numpy as np

    if heat.max() <= 0:
        return None
    places = np.argwhere(heat == heat.max()) + 0.5
    return [round(float(place), 1) for place in places.mean(axis=0) * size / heat.shape]


def _make_json_row(row: dict[str, Any]) -> dict[str, Any]:
    maps = {key: row[key]["map"].astype(float).round(4).tolist() for key in _TITLES if key in row}
    return row | {key: row[key] | {"map": values} for key, values in maps.items()}


def _make_table_row(row: dict[str, Any]) -> dict[str, Any]:
    path = row["path"]
    cells = {
        "image": path if len(path) <= 40 else f"…{path[-39:]}",
        "class": row["class"],
        "probability": f"{row['probability']:.1%}",
    }
    for key, title in _TITLES.items():
        if key in row:
            peak = row[key]["peak"]
            cells[f"{title} peak"] = "none" if peak is None else f"{peak[0]:g}, {peak[1]:g}"
    if "occlusion" in row:
        cells["largest drop"] = f"{_find_drop(row):.1%}"
    return cells


def _find_drop(row: dict[str, Any]) -> float:
    return max(0.0, float(row["occlusion"]["map"].max()))


def _draw(rows: list[dict[str, Any]], pixels: Any, out: Path) -> None:
    from shiftvit.figures.evaluation import Explanation, draw_explanations

    drawn = [
        Explanation(
            image,
            row["class"],
            row["probability"],
            {title: row[key]["map"] for key, title in _TITLES.items() if key in row},
            {"occlusion": f"drop up to {100 * _find_drop(row):.0f}%"} if "occlusion" in row else {},
        )
        for row, image in zip(rows, pixels, strict=False)
    ]
    draw_explanations(drawn, out, "What the predictions depend on")
