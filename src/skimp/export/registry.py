"""The targets by name."""

from collections.abc import Mapping

from skimp.errors import ExportError
from skimp.export import decilm, plain, transformers
from skimp.export.gguf import target as gguf
from skimp.export.openvino import target as openvino
from skimp.export.target import Target
from skimp.export.vllm_plugin import target as vllm_plugin

TARGETS: Mapping[str, Target] = {
    transformers.TARGET.name: transformers.TARGET,
    plain.TARGET.name: plain.TARGET,
    decilm.TARGET.name: decilm.TARGET,
    gguf.TARGET.name: gguf.TARGET,
    vllm_plugin.TARGET.name: vllm_plugin.TARGET,
    openvino.TARGET.name: openvino.TARGET,
}


def target(name: str) -> Target:
    """The target of that name.

    Raises:
        ExportError: there is none.
    """
    try:
        return TARGETS[name]
    except KeyError:
        raise ExportError(
            f"--to: there is no target {name!r}; known are {', '.join(TARGETS)}."
        ) from None
