"""OpenVINO on the CPU: the model exported by optimum-intel, run without its generation loop."""

from importlib.metadata import version
from typing import Any

import numpy as np
import openvino  # pyright: ignore
from bench.engines.base import Options
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig  # pyright: ignore


def versions() -> dict[str, str]:
    names = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    return {name: version(name) for name in names}


def load(options: Options) -> "OpenVino":
    """`options.argument`: `int8` for weights of 8 bits, nothing for 16."""
    if options.argument == "int8":
        weights: dict[str, Any] = {"quantization_config": OVWeightQuantizationConfig(bits=8)}
    else:
        weights = {"load_in_8bit": False}
    exported = OVModelForCausalLM.from_pretrained(
        options.file, export=True, compile=False, **weights
    )
    settings = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"}
    return OpenVino(openvino.Core().compile_model(exported.model, "CPU", settings))


class OpenVino:
    """One request, whose keys and values are states inside the compiled model."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._length = 0
        precision = compiled.get_property("INFERENCE_PRECISION_HINT")
        cache = compiled.get_property("KV_CACHE_PRECISION")
        self.about = {
            "arithmetic": precision.get_type_name(),
            "cache": cache.get_type_name(),
        }

    def prefill(self, ids: list[int]) -> int:
        self._request.reset_state()
        self._length = 0
        return self._read(ids)

    def decode(self, token: int) -> int:
        return self._read([token])

    def _read(self, ids: list[int]) -> int:
        positions = np.arange(self._length, self._length + len(ids), dtype=np.int64)
        self._length += len(ids)
        self._request.infer(
            {
                "input_ids": np.array([ids], dtype=np.int64),
                "position_ids": positions[None],
                "attention_mask": np.ones((1, self._length), dtype=np.int64),
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
        )
        return int(self._request.get_tensor("logits").data[0, -1].argmax())
