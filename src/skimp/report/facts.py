"""What a report can show, piece by piece, as frozen data.

A number that was not measured is None everywhere; infinities are kept, since an infinite harm or
perplexity is a result. Nothing here reads documents or draws.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, Kind] = ("attention", "ffn")
Part = Literal["attention", "ffn", "layer"]
PARTS: tuple[Part, Part, Part] = ("attention", "ffn", "layer")
KIND_LABEL: dict[str, str] = {"attention": "attention", "ffn": "FF", "layer": "whole layer"}


@dataclass(frozen=True)
class Estimate:
    """A value and, where one was measured, its 95% interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """True when both ends of the interval are finite numbers."""
        return (
            self.low is not None
            and self.high is not None
            and math.isfinite(self.low)
            and math.isfinite(self.high)
        )


@dataclass(frozen=True)
class Fill:
    """What stands in the place of a dropped branch: zero, mean, or a linear map of some rank."""

    kind: str = "zero"
    rank: int | None = None


@dataclass(frozen=True)
class Importance:
    """One rule's score of every sublayer, and of whole layers; None where the rule gave none."""

    rule: str
    attention: tuple[float | None, ...] = ()
    ffn: tuple[float | None, ...] = ()
    layer: tuple[float | None, ...] = ()

    def scores(self, part: Part) -> tuple[float | None, ...]:
        """All scores of one kind of part, by layer."""
        return {"attention": self.attention, "ffn": self.ffn, "layer": self.layer}[part]

    def of(self, part: Part, layer: int) -> float | None:
        """The score of one part of one layer, None if it has none."""
        scores = self.scores(part)
        return scores[layer] if layer < len(scores) else None

    @property
    def scored(self) -> tuple[Part, ...]:
        """The kinds of parts with at least one score."""
        return tuple(
            part for part in PARTS if any(score is not None for score in self.scores(part))
        )

    @property
    def layers(self) -> int:
        """How many layers the scores cover."""
        return max(len(self.scores(part)) for part in PARTS)


@dataclass(frozen=True)
class Step:
    """One step of a greedy path: which part went, and the harm once it was gone."""

    kind: Part
    layer: int
    harm: float | None = None


@dataclass(frozen=True)
class Calibration:
    """The text a plan was chosen on."""

    documents: float | None = None
    tokens: float | None = None
    source: str | None = None
    seed: str | None = None


@dataclass(frozen=True)
class Selection:
    """What was left out, and how it was chosen.

    `read_no_text`: the plan document says that no calibration text was read. `repair`: rank of the
    correction of kept output projections (None: none). `bound`: speedup of decode at `workload` if
    time were proportional to bytes read, as computed with the plan.
    """

    attention: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()
    fill: Fill = Fill()
    layers: int | None = None
    rule: str | None = None
    importance: tuple[Importance, ...] = ()
    path: tuple[Step, ...] = ()
    calibration: Calibration | None = None
    calibration_loss: float | None = None
    seconds: float | None = None
    read_no_text: bool = False
    repair: str | None = None
    bound: float | None = None
    workload: str | None = None
    other_sections: tuple[str, ...] = ()
    known: bool = False

    def dropped(self, kind: Kind) -> tuple[int, ...]:
        """Layers whose sublayer of this kind was left out, ascending."""
        return self.attention if kind == "attention" else self.ffn

    @property
    def columns(self) -> int:
        """How many layers to draw: the model's, or as many as anything here names."""
        named = [*self.attention, *self.ffn, *(step.layer for step in self.path)]
        scored = [item.layers for item in self.importance]
        return self.layers or max([0, *scored, *(layer + 1 for layer in named)])

    @property
    def ruler(self) -> Importance | None:
        """The importance shown on the map: the rule that chose, or else the first known."""
        by_name = {item.rule: item for item in self.importance}
        if self.rule in by_name:
            return by_name[self.rule]
        return self.importance[0] if self.importance else None


@dataclass(frozen=True)
class Task:
    """One task's score, dense and planned; `difference` is planned minus dense."""

    name: str
    metric: str | None = None
    dense: float | None = None
    planned: float | None = None
    difference: Estimate = Estimate()
    items: float | None = None
    is_share: bool = True


@dataclass(frozen=True)
class Fidelity:
    """How close the planned model's predictions stay to the dense model's.

    `perplexity_change` is relative: 0.04 for 4% more than dense.
    """

    perplexity_dense: float | None = None
    perplexity_planned: float | None = None
    perplexity_change: Estimate = Estimate()
    others: tuple[tuple[str, Estimate], ...] = ()


@dataclass(frozen=True)
class Quality:
    """One evaluation of one plan beside the dense model.

    `simulated`: tasks were scored in simulated generation mode, as experts are.
    """

    name: str
    tasks: tuple[Task, ...] = ()
    mean: Task | None = None
    fidelity: Fidelity | None = None
    held_out: str | None = None
    simulated: bool = False

    def task(self, name: str) -> Task | None:
        """The task of that name, if it was run."""
        return next((task for task in self.tasks if task.name == name), None)


@dataclass(frozen=True)
class Side:
    """Speed and size of one model: seconds, tokens/s, bytes, share of roofline (0 to 1)."""

    prefill_s: float | None = None
    tpot_s: float | None = None
    tokens_per_s: float | None = None
    weight_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    peak_bytes: float | None = None
    roofline_share: float | None = None


@dataclass(frozen=True)
class Predicted:
    """What was foretold of the same prompts and steps: each side's times, and the speedups."""

    dense: Side = Side()
    planned: Side = Side()
    prefill: float | None = None
    decode: float | None = None


@dataclass(frozen=True)
class Collected:
    """How much of its bound a speedup came to, and how much of the gain that the bound allows."""

    share: float | None = None
    gain: float | None = None


@dataclass(frozen=True)
class Decoder:
    """What decoded one side (`native`, `torch`, …); `reason`: why it was not the native program."""

    path: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Decoders:
    """What decoded each side, and with how many threads where it was the native program."""

    dense: Decoder = Decoder()
    planned: Decoder = Decoder()
    threads: float | None = None


@dataclass(frozen=True)
class Speed:
    """Dense beside planned on one workload; speedups and bounds are factors.

    `decode_bound` goes by bytes, `prefill_bound` by FLOPs (in older files by bytes too).
    """

    workload: str | None = None
    dense: Side = Side()
    planned: Side = Side()
    prefill: Estimate = Estimate()
    decode: Estimate = Estimate()
    prefill_bound: float | None = None
    decode_bound: float | None = None
    predicted: Predicted = Predicted()
    prefill_collected: Collected = Collected()
    decode_collected: Collected = Collected()
    decoders: Decoders = Decoders()


@dataclass(frozen=True)
class Sample:
    """One prompt and what each model made of it."""

    prompt: str
    dense: str
    planned: str


@dataclass(frozen=True)
class NeuronMap:
    """Relative magnitudes of some neurons of one layer, a picture a prompt.

    `pictures`: levels 0 to 255 (which stands for `top`), [prompt][token][column]; column c is
    neuron c · `every` of `neurons`.
    """

    layer: int
    neurons: int
    every: int
    top: float
    pictures: tuple[tuple[bytes, ...], ...]


@dataclass(frozen=True)
class LayerOverlap:
    """What experts of a layer have in common, as shares of a set: those of two `prompts`, of the
    halves of one (`own`), of halves of two (`other`), and of sets drawn by `chance`."""

    layer: int
    chance: float | None = None
    prompts: float | None = None
    own: float | None = None
    other: float | None = None


@dataclass(frozen=True)
class Flocking:
    """Which neurons prompts need: a map of some, and what the experts of prompts share.

    `mean` is over the layers; `pairs` a square of shares, prompt by prompt; `sizes` their tokens.
    """

    sizes: tuple[int, ...] = ()
    map: NeuronMap | None = None
    mean: LayerOverlap | None = None
    pairs: tuple[tuple[float, ...], ...] = ()
    layers: tuple[LayerOverlap, ...] = ()


@dataclass(frozen=True)
class DepthShares:
    """Where the tokens of a task or a text leave: `depths` are (layers run, share of tokens),
    `left_out` is the share of layers left out and `exits` of tokens that leave early."""

    name: str
    left_out: float | None
    exits: float | None
    depths: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class DepthAgreement:
    """How often the likeliest token after `depth` layers is the full model's; `left` is of the
    tokens that leave there, by what they emit."""

    depth: int
    plain: float | None = None
    translated: float | None = None
    left: float | None = None


@dataclass(frozen=True)
class DecidedToken:
    """A token of a text, after how many layers the prediction for it was decided, and whether
    that is the full model's."""

    text: str
    depth: int
    agrees: bool


@dataclass(frozen=True)
class FreeAnswers:
    """Greedy answers with exits beside the dense model's: shares of tokens, answers and layers."""

    prompts: float | None
    new: float | None
    until_first: float | None
    same: float | None
    left_out: float | None


@dataclass(frozen=True)
class Leaving:
    """Where tokens leave a model of `layers` layers early."""

    layers: int
    groups: tuple[DepthShares, ...] = ()
    agreement: tuple[DepthAgreement, ...] = ()
    sample: tuple[DecidedToken, ...] = ()
    free: FreeAnswers | None = None
    text_agreement: float | None = None


@dataclass(frozen=True)
class Fact:
    """One named line of the measuring conditions."""

    name: str
    value: str


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from, and what to keep in mind about them."""

    facts: tuple[Fact, ...] = ()
    versions: tuple[Fact, ...] = ()
    commands: tuple[str, ...] = ()
    plan_yaml: str | None = None
    date: str | None = None
    caveats: tuple[str, ...] = field(default=())
