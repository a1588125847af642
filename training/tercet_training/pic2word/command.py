"""`tercet-train pic2word`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tercet.errors import TercetError

if TYPE_CHECKING:
    from tercet_training.pic2word.recipe import Recipe
    from tercet_training.pic2word.world import World

DATA, CLIP, RECIPE, RUN = "Pictures", "CLIP", "Recipe (the defaults are the authors')", "This run"

EXAMPLES = """[bold]Examples[/bold]

  tercet-train pic2word --data pictures/ --clip ViT-B-32.pt --arch ViT-B-32-quickgelu --output runs/b32

  tercet-train pic2word --data 'cc3m/{00000..00331}.tar' --clip ViT-L-14.pt --arch ViT-L-14-quickgelu \
--output runs/l14

  torchrun --nproc-per-node 8 .venv/bin/tercet-train pic2word --data cc/Train_GCC-training_output.csv \
--image-root . --clip ViT-L-14.pt --arch ViT-L-14-quickgelu --output runs/l14

  tercet-export network pic2word --checkpoint runs/l14/epoch_30.pt --output pic2word.onnx"""


def pic2word(
    data: Annotated[
        str,
        typer.Option(
            help="Training pictures: a folder; a .tsv or .csv with a column of paths; or webdataset shards, "
            "as 'shards/{00000..00331}.tar' in quotes. Captions are not used.",
            rich_help_panel=DATA,
        ),
    ],
    clip: Annotated[
        str, typer.Option(help="CLIP's checkpoint: a file, or hf://org/repo/file.", rich_help_panel=CLIP)
    ],
    output: Annotated[
        Path, typer.Option(help="Folder for checkpoints, metrics and TensorBoard.", rich_help_panel=RUN)
    ],
    arch: Annotated[
        str | None,
        typer.Option(help="Its architecture: an open_clip name, or a .json file.", rich_help_panel=CLIP),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Its merges file. Left out: CLIP's own.", rich_help_panel=CLIP)
    ] = None,
    image_column: Annotated[
        str, typer.Option(help="The table's column of paths.", rich_help_panel=DATA)
    ] = "filepath",
    image_root: Annotated[
        Path | None,
        typer.Option(help="What its paths are relative to. Left out: its folder.", rich_help_panel=DATA),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Pictures to validate on, of the same forms as --data.", rich_help_panel=DATA),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=10_000,
            help="Without --validation: how many of --data to validate on instead of training. Left out: a "
            "hundredth, at most 1,000.",
            rich_help_panel=DATA,
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the pictures.", rich_help_panel=RECIPE)
    ] = 30,
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            help="Pictures in a step of each process. Each one's pictures are told from those of all.",
            rich_help_panel=RECIPE,
        ),
    ] = 128,
    learning_rate: Annotated[
        float, typer.Option(min=0, help="AdamW's, at its highest.", rich_help_panel=RECIPE)
    ] = 1e-4,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of weights.", rich_help_panel=RECIPE)] = 0.1,
    warm_up: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps in which the rate climbs, before it falls along a cosine. Left out: 10,000, or a "
            "tenth of a run for which that is more than half.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    gradient_norm: Annotated[
        float | None,
        typer.Option(min=0, help="Clip gradients to this norm. Left out: they stay.", rich_help_panel=RECIPE),
    ] = None,
    middle: Annotated[int, typer.Option(min=1, help="Hidden units.", rich_help_panel=RECIPE)] = 512,
    layers: Annotated[int, typer.Option(min=1, help="Hidden layers.", rich_help_panel=RECIPE)] = 2,
    dropout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of hidden units.", rich_help_panel=RECIPE)
    ] = 0.1,
    crop: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="Least share of a picture that a random crop keeps.", rich_help_panel=RECIPE
        ),
    ] = 0.9,
    seed: Annotated[
        int, typer.Option(help="Decides first weights, order, crops and dropout.", rich_help_panel=RECIPE)
    ] = 0,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, bf16, fp16, or auto: bf16 (on older ones fp16) on a GPU, fp32 on a CPU.",
            rich_help_panel=RUN,
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, or cuda:1 and so on.", rich_help_panel=RUN)
    ] = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read pictures, for each GPU.", rich_help_panel=RUN)
    ] = 4,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of PyTorch.", rich_help_panel=RUN)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --output, exactly; start it if there is none.",
            rich_help_panel=RUN,
        ),
    ] = False,
    save_every_epochs: Annotated[
        int,
        typer.Option(
            min=0, help="Keep epoch_N.pt every so many epochs; the last always.", rich_help_panel=RUN
        ),
    ] = 1,
    save_every_steps: Annotated[
        int,
        typer.Option(min=0, help="Renew epoch_latest.pt within epochs too; 0: not.", rich_help_panel=RUN),
    ] = 0,
    validate_every_steps: Annotated[
        int, typer.Option(min=0, help="Validate within epochs too; 0: not.", rich_help_panel=RUN)
    ] = 0,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between metrics.", rich_help_panel=RUN)] = 10,
    clip_in_checkpoint: Annotated[
        bool,
        typer.Option(
            help="Save CLIP with every checkpoint, which the authors' code expects (ViT-L/14: 1.7 GB).",
            rich_help_panel=RUN,
        ),
    ] = True,
    tensorboard: Annotated[bool, typer.Option(help="Write OUTPUT/tensorboard.", rich_help_panel=RUN)] = True,
) -> None:
    """Train Pic2Word's mapping network for a CLIP on pictures alone.

    A picture's features become a pseudo-word, such that CLIP finds the picture by "a photo of *". CLIP is
    frozen. Needs no captions and no labels. Pictures that cannot be read are skipped and listed in
    OUTPUT/unreadable.tsv; OUTPUT/metrics.jsonl has what TensorBoard shows.

    With torchrun several processes share each step, and compare all their pictures with one another.

    Checkpoints are in the official container, so that the authors' code and tercet-export read them.
    """
    from tercet_training.pic2word.recipe import PRECISIONS  # torch takes seconds
    from tercet_training.progress import console

    if precision not in ("auto", *PRECISIONS):
        raise typer.BadParameter(f"choose auto, {', '.join(PRECISIONS)}", param_hint="--precision")
    try:
        run(
            data=data,
            clip=clip,
            arch=arch,
            tokenizer=tokenizer,
            output=output,
            image_column=image_column,
            image_root=image_root,
            validation=validation,
            held_out=held_out,
            device=device,
            precision=precision,
            threads=threads,
            tensorboard=tensorboard,
            recipe={
                "epochs": epochs,
                "batch": batch,
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "warm_up": warm_up,
                "middle": middle,
                "layers": layers,
                "dropout": dropout,
                "crop": crop,
                "gradient_norm": gradient_norm,
                "seed": seed,
            },
            habits={
                "resume": resume,
                "workers": workers,
                "save_every_epochs": save_every_epochs,
                "save_every_steps": save_every_steps,
                "validate_every_steps": validate_every_steps,
                "log_every": log_every,
                "with_clip": clip_in_checkpoint,
            },
        )
    except TercetError as error:
        console.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; go on by the same command with --resume")
        raise typer.Exit(130) from None


def run(
    *,
    data: str,
    clip: str,
    arch: str | None,
    tokenizer: str | None,
    output: Path,
    image_column: str,
    image_root: Path | None,
    validation: str | None,
    held_out: int | None,
    device: str,
    precision: str,
    threads: int | None,
    tensorboard: bool,
    recipe: Mapping[str, object],
    habits: Mapping[str, object],
) -> None:
    """Put the parts together, in this process's place among the others."""
    import torch

    from tercet_export import checkpoints
    from tercet_training.pic2word.frozen import load_clip
    from tercet_training.pic2word.recipe import Recipe, adam_defaults
    from tercet_training.pic2word.sources import open_source
    from tercet_training.pic2word.train import Habits, train
    from tercet_training.pic2word.world import choose_precision, join
    from tercet_training.progress import Display, console

    if threads:
        torch.set_num_threads(threads)
    with join(device) as world:
        display = Display(shown=world.first)

        def say(text: str) -> None:
            if world.first:
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        say(f"Looking for pictures in {data}")
        source = open_source(data, image_column, image_root)
        others = open_source(validation, image_column, image_root) if validation else None
        if others is None and held_out is None:
            held_out = min(1000, len(source) // 100)
        frozen = load_clip(checkpoints.resolve(clip), arch, tokenizer)
        beta2, epsilon = adam_defaults(frozen.architecture)
        found = Recipe(
            **{**recipe, "batch": int(str(recipe["batch"])) * world.size},  # type: ignore[arg-type]
            beta2=beta2,
            epsilon=epsilon,
            held_out=0 if others else held_out or 0,
            precision=choose_precision(precision, world.device),
        )
        say(describe(found, len(source), frozen.architecture, world))
        writers: list[Any] = []

        def scalars(step: int, values: Mapping[str, float]) -> None:
            if not writers:
                from torch.utils.tensorboard import SummaryWriter

                # What a killed run wrote past the checkpoint that this one goes on from is not shown.
                writers.append(SummaryWriter(str(output / "tensorboard"), purge_step=step))
            for name, value in values.items():
                writers[0].add_scalar(f"pic2word/{name}", value, step)

        chosen = Habits(
            **{**habits, "output": output, "name": output.name, "validation": others},  # type: ignore[arg-type]
            scalars=scalars if tensorboard else lambda step, values: None,
            say=say,
        )
        try:
            with display.bars:
                train(frozen, source, found, display, world, chosen)
        finally:
            for writer in writers:
                writer.close()
        made = output / f"epoch_{found.epochs}.pt"
        say(f"Done. Next: tercet-export network pic2word --checkpoint {made} --output pic2word.onnx")


def describe(recipe: "Recipe", pictures: int, architecture: str, world: "World") -> str:
    """What is about to be done, in a line or two."""
    steps = (pictures - recipe.held_out) // recipe.batch * recipe.epochs
    warm_up = f", the first {recipe.warm_up_steps(steps):,} to warm up" if steps else ""
    return (
        f"{pictures:,} pictures, {recipe.held_out:,} held out; CLIP {architecture}; "
        f"batches of {recipe.batch:,} over {world.size} process{'es' if world.size > 1 else ''} on "
        f"{world.device.type} in {recipe.precision}; "
        f"{steps:,} steps{warm_up}"
    )
