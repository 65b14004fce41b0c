"""`shiftvit train` and `shiftvit evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shiftvit import files
from shiftvit.cli.settings import Changes, Data, RecipeName, choose_recipe, prepare_backend, read_overrides
from shiftvit.cli.tables import Json, list_examples, print_json, show
from shiftvit.errors import list_some, pluralize

# The most classes that are printed; evaluation.json has all.
_CLASSES = 40


app = typer.Typer()


@app.command(
    epilog=list_examples(
        "shiftvit train",
        "shiftvit train --recipe cifar10 --out runs/mine",
        "shiftvit train --data photos/ --set train.optimizer.learning_rate=0.005",
        "shiftvit train --resume runs/mine",
    )
)
def train(
    recipe: RecipeName = None,
    changes: Changes = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs; short for --set train.epochs=N.")] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to create (default: runs/RECIPE-DATE).")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to resume.")] = None,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="If memory runs out, compute each batch in parts and continue.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")] = False,
) -> None:
    """Train and evaluate a model; keep it in a run folder."""
    overrides = read_overrides(changes, data)
    if epochs is not None:
        overrides["train.epochs"] = epochs
    if auto_batch:
        overrides["train.auto_batch"] = True
    if recipe is None and resume is None:
        recipe = choose_recipe(data)
    prepare_backend()
    from shiftvit.data import named
    from shiftvit.training.groups import join_processes
    from shiftvit.training.runfolder import choose_run

    with join_processes() as processes:
        # Report mistakes at once, before a framework is loaded. Only several processes need it to find each other.
        chosen, folder = choose_run(recipe, out, resume, overrides, processes)
        processes.together(lambda: named.check_name(chosen.data.name))
        from shiftvit.training.fit import train_in

        run = train_in(folder, chosen, tensorboard=tensorboard, processes=processes)
    if processes.rank > 0:
        return
    test, spent = run.metrics["test"], run.metrics["train"]
    print(f"test {_format_figures(test, run.recipe.model.num_classes)}  ({pluralize(test['n'], 'image')})")
    speed = f"{spent['images_per_second']:,.0f} images/s"
    what = f"a head with C={spent['strength']:g}" if "strength" in spent else pluralize(spent["epochs"], "epoch")
    if run.recipe.train.select == "best" and spent["best_epoch"] not in (None, spent["epochs"]):
        what += f", kept epoch {spent['best_epoch']},"
    print(f"trained {what} in {spent['seconds']:.0f} s at {speed}")
    print(f"run folder: {run.path} (model in bundle/, figures in figures/)")


@app.command(
    epilog=list_examples(
        "shiftvit evaluate runs/mine",
        "shiftvit evaluate runs/mine --data photos/",
        "shiftvit evaluate runs/mine --corruptions",
        "shiftvit evaluate runs/mine --logits mine.npz",
    )
)
def evaluate(
    run: Annotated[str, typer.Argument(help="Run folder, bundle or model name.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|NAME",
            help="Images or data set to evaluate on, such as the run's images in a new place (default: the run's own).",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="train, validation, test or all (default: test, else validation, else all)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for evaluation.json and figures (default for a run: RUN/evaluation for its own test images, "
            "RUN/evaluation/NAME for others)."
        ),
    ] = None,
    corruptions: Annotated[
        bool,
        typer.Option("--corruptions", help="Also evaluate under noise, blur, weather and compression (minutes)."),
    ] = False,
    logits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the logits, labels and paths of the images to this .npz."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained model on its test images or on other images."""
    from shiftvit.bundle.stored.find import find_bundle

    find_bundle(run)
    if out is not None:
        files.check_folder_name(out)
    if logits is not None:
        from shiftvit.evaluation.logits import ENDINGS

        files.check_file(logits, ENDINGS)
    prepare_backend()
    from shiftvit.evaluation.evaluate import evaluate as run_evaluation

    found = run_evaluation(run, data, split=split, out=out, keep=out is None, corruptions=corruptions, logits=logits)
    if as_json:
        print_json(found)
        return
    low, high = found["intervals"]["top1"]
    print(f"{found['data']} {found['split']} images: {found['n']:,}")
    print(_format_figures(found, len(found["classes"])))
    print(f"top-1 between {low:.2%} and {high:.2%} (95% interval); macro F1 {found['macro']['f1']:.2%}")
    print(f"calibration error {found['calibration']['ece']:.2%} at temperature {found['temperature']:.2f}")
    print(f"{found['seconds']:.1f} s, {found['images_per_second']:,.0f} images/s")
    shares = ("precision", "recall", "f1")
    classes, without = [row for row in found["classes"] if row["support"]], found["without_images"]
    if without:
        missing = f"{pluralize(len(without), 'class', 'classes')} ({list_some(map(repr, without))})"
        print(
            f"no images of {missing}: macro figures are means over the other {len(classes):,}; "
            f"an answer may be any of the {len(found['classes']):,}"
        )
    if "among_others" in found:
        figures = _format_figures(found["among_others"], len(classes))
        print(f"with answers among these {len(classes):,} classes only: {figures}")
    rows = [{**row, **{key: f"{row[key]:.1%}" for key in shares}} for row in classes[:_CLASSES]]
    show(rows, "Classes" if len(rows) == len(classes) else f"The first {len(rows)} classes")
    if corruptions:
        means = found["corruption_means"]
        show(_group_by_corruption(found["corruptions"], means), "Top-1 under corruption, by severity")
        families = ", ".join(f"{family} {top1:.2%}" for family, top1 in means["by_family"].items())
        print(f"mean top-1 over the {means['corruptions']} benchmark corruptions: {means['top1']:.2%} ({families})")
    if found["folder"] is not None:
        print(f"figures and evaluation.json: {found['folder']}")
    if logits is not None:
        print(f"logits: {logits}")


def _format_figures(found: dict[str, Any], classes: int) -> str:
    """Returns loss and accuracies in words."""
    from shiftvit.bundle.card import shows_top5

    top5 = f"  top-5 {found['top5']:.2%}" if shows_top5(classes) else ""
    return f"loss {found['loss']:.4f}  top-1 {found['top1']:.2%}{top5}"


def _group_by_corruption(rows: list[dict[str, Any]], means: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each corruption with a column for each severity; their means stand before the extra ones."""
    from shiftvit.evaluation.corruptions import EXTRAS

    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["severity"]:
            found.setdefault(row["corruption"], {})[str(row["severity"])] = row["top1"]
    mean = f"mean of these {means['corruptions']}"
    found = {
        **{name: top1 for name, top1 in found.items() if name not in EXTRAS},
        mean: means["by_severity"],
        **{f"{name} (extra)": top1 for name, top1 in found.items() if name in EXTRAS},
    }
    return [
        {"corruption": name, **{level: f"{share:.1%}" for level, share in top1.items()}} for name, top1 in found.items()
    ]
