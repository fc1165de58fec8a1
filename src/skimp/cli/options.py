"""The arguments and options that verbs share, each defined once."""

from pathlib import Path
from typing import Annotated

import typer

_COMMON = "Common options"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="demo, a folder, a .gguf file, a hub id, or random:SHAPE[,layers=N][,seed=S].",
        show_default=False,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="PLAN",
        help="Plan file (or a folder that holds plan.yaml) to look at beside the dense model.",
    ),
]
PlanFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--plan",
        metavar="PLAN",
        help="Plan file (or a folder that holds plan.yaml); give it again for each further plan.",
    ),
]
PlanOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="PLAN", help="Plan file to write; replaces an old one."),
]
APPLIED_PLAN = typer.Option(
    "--plan", metavar="PLAN", help="Plan file to apply.", show_default=False
)
MODEL_OUT = typer.Option(
    "--out", metavar="DIR", help="Folder to write the model to.", show_default=False
)
Force = Annotated[
    bool, typer.Option("--force", help="Replace a model that is already in the folder.")
]
State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="Where finished results are kept; by default in skimp's cache folder.",
        show_default=False,
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure everything again, whatever is kept.")]
Keep = Annotated[
    float | None,
    typer.Option(
        "--experts",
        metavar="KEEP",
        help="Keep this share of the FF neurons for the answer, those that the prompt needed.",
        show_default=False,
    ),
]
Scope = Annotated[
    str,
    typer.Option(
        "--scope",
        help="Who picks those that --experts keeps: prompt (each for its answer) or calibrated "
        "(calibration text, for good: the rest is removed).",
    ),
]
Tune = Annotated[
    bool,
    typer.Option(
        "--tune",
        help="Make --experts better by calibration text (minutes): a prior joins what the prompt "
        "says, what is left out counts as its mean, and the share is spread over the layers.",
    ),
]
Refresh = Annotated[
    int,
    typer.Option(
        "--refresh",
        metavar="N",
        min=0,
        help="With --experts: after so many answer tokens read them again with whole FFs and "
        "choose anew; 0: never.",
    ),
]
ExitFile = Annotated[
    Path | None,
    typer.Option(
        "--exit",
        metavar="FILE",
        help="Let tokens leave early as this plan file says, which `skimp fit-exit` wrote.",
        show_default=False,
    ),
]
WorkloadText = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="PROMPT+NEWxBATCH",
        help="Prompt tokens, new tokens and sequences at once.",
    ),
]
TensorParallel = Annotated[
    int,
    typer.Option(
        "--tensor-parallel",
        metavar="N",
        min=1,
        max=4096,
        help="Foretell what each of so many devices holds, and their time together; each is taken "
        "to be like the one that `skimp machine` measures.",
    ),
]
LinkText = Annotated[
    str | None,
    typer.Option(
        "--link",
        metavar="GB/s,µs",
        help="With --tensor-parallel: bandwidth each way and latency of the link between devices "
        "[dim](default: 25,20, as of PCIe 4.0 x16; NVLink 4 is about 400,10)[/].",
        show_default=False,
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result as JSON too; - writes it to standard output, and text to stderr.",
        rich_help_panel=_COMMON,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, max=2**32 - 1, help="Of every draw.", rich_help_panel=_COMMON
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:N or mps.", rich_help_panel=_COMMON
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="auto (what the device multiplies fast), float32, bfloat16 or float16.",
        rich_help_panel=_COMMON,
    ),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read the layers' weights from their files whenever they are used: slower, but a "
        "model may be larger than memory [dim](default: if it does not fit)[/].",
        show_default=False,
        rich_help_panel=_COMMON,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=4096,
        help="CPU threads; by default torch's own choice.",
        show_default=False,
        rich_help_panel=_COMMON,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error (as SKIMP_DEBUG=1 does).",
        rich_help_panel=_COMMON,
    ),
]
