"""Documents as skimp's commands write them, small enough to read and varied enough to matter."""

import copy
import math
from typing import Any

Document = dict[str, Any]


def common(layers: int = 30) -> Document:
    return {
        "skimp": "0.1.0",
        "model": {
            "source": "demo",
            "type": "llama",
            "layers": layers,
            "parameters": 134_515_008,
            "dtype": "bfloat16",
            "fingerprint": "sha256:00",
        },
        "plan": {
            "skimp": 1,
            "model": {"type": "llama", "layers": layers, "fingerprint": "sha256:00"},
            "drop": {"attention": [7, 12, 26], "ffn": [], "fill": "linear:16"},
        },
        "seed": 3,
        "device": "cpu",
        "machine": {"cpu": "a processor", "threads": 2, "memory": 16_000_000_000},
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.13.0"},
    }


def plan(layers: int = 30) -> Document:
    scores: Document = {
        "attention": [0.01 + 0.001 * (layer * 7 % 11) for layer in range(layers)],
        "ffn": [0.03 + 0.002 * (layer * 5 % 13) for layer in range(layers)],
    }
    scores["ffn"][0] = 4.25
    return {
        **common(layers),
        "dropped": {"attention": [7, 12, 26], "ffn": []},
        "fill": "linear:16",
        "rule": "greedy",
        "calibration_loss": 3.25,
        "seconds": 61.5,
        "importance": {"greedy": scores, "cosine": copy.deepcopy(scores)},
        "path": [
            {"kind": "attention", "layer": 12, "harm": 0.001},
            {"kind": "attention", "layer": 7, "harm": 0.004},
            {"kind": "attention", "layer": 26, "harm": 0.009},
        ],
        "calibration": {"documents": 16, "tokens": 8192, "source": "some prose", "seed": 0},
        "command": "skimp plan demo",
        "workload": "512+128x1",
        "byte_bound": {"decode": 1.25},
    }


def task(dense: float, planned: float, half: float = 0.02) -> Document:
    difference = planned - dense
    return {
        "metric": "acc",
        "dense": dense,
        "planned": planned,
        "difference": difference,
        "interval": [difference - half, difference + half],
        "items": 500,
    }


def evaluation(loss: float = 0.01) -> Document:
    return {
        **common(),
        "tasks": {
            "arc_easy": task(0.6, 0.6 - loss),
            "wikitext": {"metric": "word_perplexity", "dense": 20.0, "planned": 21.0, "items": 60},
        },
        "mean": task(0.6, 0.6 - loss, half=0.015),
        "fidelity": {
            "perplexity_dense": 20.0,
            "perplexity_planned": 21.0,
            "loss_dense": 2.9957,
            "loss_planned": 3.0445,
            "loss_difference": 0.0488,
            "loss_interval": [0.0392, 0.0583],
            "kl": 0.05,
            "kl_interval": [None, None],
            "top1_agreement": 0.92,
            "flips": 0.05,
            "lost": 0.03,
            "gained": 0.02,
            "tokens": 4096,
            "documents": 16,
        },
        "held_out": "other prose",
        "command": "skimp eval plan.yaml",
    }


def exits() -> Document:
    """What an evaluation of a plan with early exits says besides."""
    return {
        "layers": 6,
        "probe": [1, 3],
        "tasks": {
            "piqa": {"left_out": 1 / 6, "exits": 0.25, "depths": {"2": 0.25, "6": 0.75}},
            "arc_easy": {"left_out": 0.0, "exits": 0.0, "depths": {"6": 1.0}},
        },
        "by_input": None,
        "text": {
            "left_out": 0.3,
            "exits": 0.6,
            "agreement": 0.95,
            "depths": {"2": 0.3, "3": 0.1, "4": 0.2, "6": 0.4},
            "agreement_by_depth": {"2": 0.9, "4": 0.95, "6": 1.0},
            "lens": [
                {"depth": 1, "plain": 0.1, "translated": None},
                {"depth": 2, "plain": 0.3, "translated": 0.5},
                {"depth": 4, "plain": 0.6, "translated": 0.8},
                {"depth": 6, "plain": 1.0, "translated": None},
            ],
            "sample": {
                "tokens": ["The", " mill", " runs", " on"],
                "depths": [2, 6, 4, 2],
                "agree": [True, True, False, True],
            },
        },
        "free": {
            "prompts": 8,
            "new": 32,
            "until_first": 0.625,
            "same": 0.25,
            "agreement": 0.7,
            "by_position": [1.0, 0.4],
            "left_out": 0.3,
        },
    }


def flocking() -> Document:
    """What an evaluation of a plan with experts says besides."""
    shares = [(0.5, 0.6 + 0.01 * layer, 0.7, 0.62) for layer in range(6)]
    names = ("chance", "prompts", "own", "other")
    rows = [bytes((7 * token + 3 * column) % 256 for column in range(40)) for token in range(20)]
    return {
        "prompts": [20, 64, 128],
        "map": {
            "layer": 3,
            "neurons": 120,
            "every": 3,
            "top": 0.153,
            "prompts": [[row.hex() for row in rows], [row.hex() for row in rows[:5]]],
        },
        "overlap": {
            **dict(zip(names, (0.5, 0.625, 0.7, 0.62), strict=True)),
            "pairs": [[1.0, 0.61, 0.72], [0.61, 1.0, 0.55], [0.72, 0.55, 1.0]],
            "layers": [
                {"layer": layer, **dict(zip(names, values, strict=True))}
                for layer, values in enumerate(shares)
            ],
        },
    }


def bench(decode: float = 1.2, half: float = 0.02, bound: float | None = 1.25) -> Document:
    return {
        **common(),
        "workload": "512+128x1",
        "dense": {
            "prefill_s": 0.9,
            "tpot_s": 0.03,
            "tokens_per_s": 33.3,
            "weight_bytes": 500_000_000,
            "kv_bytes_per_token": 46_080,
            "peak_bytes": 900_000_000,
            "roofline_share": 0.8,
        },
        "planned": {
            "prefill_s": 0.8,
            "tpot_s": 0.03 / decode,
            "tokens_per_s": 33.3 * decode,
            "weight_bytes": 400_000_000,
            "kv_bytes_per_token": 41_472,
            "peak_bytes": 800_000_000,
            "roofline_share": 0.79,
        },
        "speedup": {
            "prefill": 1.12,
            "decode": decode,
            "decode_interval": [decode - half, decode + half],
        },
        "predicted": {
            "dense": {"prefill_s": 0.85, "tpot_s": 0.029},
            "planned": {"prefill_s": 0.78, "tpot_s": 0.0235},
            "speedup": {"prefill": 1.09, "decode": 1.234},
        },
        "byte_bound": {"decode": bound} if bound is not None else None,
        "compute_bound": {"prefill": 1.14},
        "collected": {
            "prefill": {"gain": 0.857, "share": 0.982},
            "decode": {"gain": (decode - 1) / (bound - 1), "share": decode / bound},
        }
        if bound is not None
        else None,
        "engine": {
            "dense": {"path": "native", "reason": None},
            "planned": {"path": "native", "reason": None},
            "threads": 2,
        },
        "faster": decode - half > 1,
        "rounds": 12,
        "measured": {"bandwidth": 2.1e10, "matmul": 1.5e11, "launch": 1.4e-6, "threads": 2},
        "command": "skimp bench plan.yaml",
    }


def old_bench() -> Document:
    """What `skimp bench` wrote before it foretold anything or said what decoded."""
    later = ("predicted", "compute_bound", "collected", "engine")
    return {name: value for name, value in bench().items() if name not in later}


def samples() -> list[Document]:
    return [
        {"prompt": "Once upon", "dense": " a time there was", "planned": " a time he went"},
        {"prompt": "long " * 400, "dense": "same", "planned": "same"},
    ]


def everything() -> Document:
    return {
        "plan": plan(),
        "evals": {"plan": evaluation(), "last": evaluation(0.08)},
        "bench": bench(),
        "samples": samples(),
    }


INJECTION = (
    "</title></style></svg><script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
)


def hostile_flocking() -> Document:
    """Some of it can be drawn, and the rest must not get in the way."""
    good = flocking()
    return {
        "prompts": [10**400, -1, INJECTION, 5, True],
        "map": {
            **good["map"],
            "prompts": [INJECTION, [INJECTION], [["00"]], *good["map"]["prompts"], ["00", "0000"]],
        },
        "overlap": {
            "chance": math.inf,
            "prompts": INJECTION,
            "own": -1,
            "pairs": [[1, math.nan], [0.5, 1]],
            "layers": [{"layer": 10**9}, {"layer": 2, "own": 0.5, "other": INJECTION}, 7],
        },
    }


def hostile() -> Document:
    """Every text an injection, every number a trap."""
    bad = {
        **plan(5),
        "model": INJECTION,
        "plan": {INJECTION: INJECTION},
        "dropped": {"attention": [0, -1, "x", 10**9, 4, 4, True, None], "ffn": "all"},
        "fill": INJECTION,
        "rule": INJECTION,
        "calibration_loss": math.inf,
        "seconds": math.nan,
        "importance": {
            INJECTION: {"attention": [math.nan, None, math.inf, -math.inf, 1e308], "ffn": []},
            "empty": {"attention": [], "ffn": []},
            "wrong": 5,
            "text": {"attention": ["a", "b"], "ffn": [0, 0]},
        },
        "path": [
            {"kind": "attention", "layer": 0, "harm": math.nan},
            {"kind": "ffn", "layer": 1, "harm": math.inf},
            {"kind": INJECTION, "layer": 1},
            {},
            7,
        ],
        "calibration": {"documents": 10**400, "tokens": math.nan, "source": INJECTION},
        "machine": {INJECTION: INJECTION, "cache_bytes": math.inf, "deep": {"a": [1, {"b": 2}]}},
        "versions": {INJECTION: INJECTION},
        "seed": 10**5000,
        "command": INJECTION,
        "date": INJECTION,
    }
    quality = {
        **evaluation(),
        "tasks": {
            INJECTION: {"metric": INJECTION, "dense": math.nan, "planned": math.inf, "items": -1},
            "swapped": {"dense": 0.5, "planned": 0.4, "difference": -0.1, "interval": [0.1, -0.3]},
            "nothing": {},
            "null": None,
            "wrong": [1, 2],
            "pair": {"dense": 0.5, "planned": 0.4, "interval": [math.inf, math.nan]},
        },
        "mean": {"difference": -math.inf, "interval": "wide"},
        "fidelity": {"perplexity_dense": 0, "perplexity_planned": math.inf, INJECTION: 1e-300},
        "held_out": {"source": INJECTION, "items": [1, 2, 3]},
        "flocking": hostile_flocking(),
        "exits": {
            **exits(),
            "tasks": {INJECTION: {"depths": {"2": 1.0, INJECTION: 3}}, "x": INJECTION},
            "free": {"until_first": math.nan, "same": INJECTION},
        },
    }
    timing = {
        **bench(),
        "workload": INJECTION,
        "dense": {"weight_bytes": 0, "prefill_s": -1, "tpot_s": math.inf},
        "planned": None,
        "speedup": {"decode": math.nan, "prefill": math.inf, "decode_interval": [1, 2, 3]},
        "byte_bound": 3,
        "predicted": {"dense": 5, "planned": {"tpot_s": INJECTION}, "speedup": {"decode": -1e300}},
        "compute_bound": {"prefill": math.inf},
        "collected": {"prefill": [1], "decode": {"share": math.inf, "gain": math.nan}},
        "engine": {
            "dense": {"path": INJECTION, "reason": [INJECTION]},
            "planned": "native",
            "threads": 10**400,
        },
    }
    text = f"\u202e\x00\ud800 שלום {INJECTION} 日本語 🎉\r\n"
    return {
        "plan": bad,
        "evals": {"plan": quality, INJECTION: evaluation(), "broken": 3},
        "bench": timing,
        "samples": [{"prompt": text * 50, "dense": text, "planned": text + "x"}, {}, None, "text"],
        "caveats": [text],
    }
