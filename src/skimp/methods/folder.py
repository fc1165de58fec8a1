"""Write a planned model as a folder that loads without skimp.

The folder holds safetensors, the tokenizer, the plan, and one small modelling file: a copy of
:mod:`skimp.models.carve` under a subclass of the family's own transformers class. Its model type is
not the family's, so that a loader without remote code refuses it instead of silently making up the
weights that were left out.
"""

import inspect
import json
from pathlib import Path
from typing import Any

from torch import nn

import skimp
from skimp.errors import PlanError
from skimp.methods.exit.section import by_exit
from skimp.methods.experts.section import by_prompt
from skimp.models import carve
from skimp.plan import PLAN_FILE, Plan
from skimp.whole import whole_folder

MODELLING = "modeling_planned"
_HEADER = '''"""A {family} model with sublayers left out, written by skimp {version}.

Load with AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True); nothing but
transformers and torch is needed. What was left out stands in config.json and plan.yaml.
"""
'''
_FOOTER = '''

from transformers import {config} as _Config  # noqa: E402
from transformers import {model} as _Model  # noqa: E402


class PlannedConfig(_Config):
    """The family's config with the layout of what was left out under `skimp`."""

    model_type = "{model_type}"


class PlannedForCausalLM(planned_class(_Model)):
    """The family's model, built without what was left out."""

    config_class = PlannedConfig
'''


def save(
    model: nn.Module, tokenizer: Any, plan: Plan, folder: str | Path, *, replace: bool = False
) -> None:
    """Write `model`, on which `plan` stands, to `folder`.

    The folder appears whole or not at all. An empty plan gives a plain transformers folder.
    `replace`: what is in the folder may go, once the new one is whole.

    Raises:
        SkimpError: the folder exists and is not empty, or cannot be written.
        PlanError: the plan's methods cannot be stored in a model folder.
    """
    check_static(model, plan)
    with whole_folder(folder, replace=replace) as fresh:
        write(model, tokenizer, plan, fresh)


def check_static(model: Any, plan: Plan) -> None:
    """Raise PlanError unless the plan stands on the model and a folder can hold it."""
    if by_exit(plan) is not None:
        raise PlanError(
            "exit: the engine lets tokens leave early, so no folder can hold that; keep the plan "
            "file and the model, or leave the section out."
        )
    if getattr(model.config, "skimp", None) is None and any(plan.sections.values()):
        raise PlanError("model: the plan is not applied to it; use `skimp.apply` before saving.")
    if by_prompt(plan) is not None:
        raise PlanError(
            "experts: the engine chooses them for each prompt, so no folder can hold them; keep "
            "the plan file and the dense model, or fit one set with `scope: calibrated`."
        )


def write(model: Any, tokenizer: Any, plan: Plan, folder: Path) -> None:
    """Write the files of :func:`save` into an empty folder, without its checks."""
    from huggingface_hub import save_torch_state_dict

    config = model.config
    block = getattr(config, "skimp", None)
    if block is None:
        model.save_pretrained(folder)
    else:
        data = config.to_dict()
        family = block["layout"]["model_type"]
        data["model_type"] = f"skimp_{family}"
        data["architectures"] = ["PlannedForCausalLM"]
        data["auto_map"] = {
            "AutoConfig": f"{MODELLING}.PlannedConfig",
            "AutoModelForCausalLM": f"{MODELLING}.PlannedForCausalLM",
        }
        # A model loaded from such a folder has classes of its own; whose they are stands in it.
        names = {
            "config": block.get("config_class", type(config).__name__),
            "model": block.get("model_class", type(model).__name__),
        }
        data["skimp"] = {
            **block,
            "config_class": names["config"],
            "model_class": names["model"],
        }
        (folder / "config.json").write_text(json.dumps(data, indent=2, default=str) + "\n")
        body = inspect.getsource(carve)
        text = _HEADER.format(family=family, version=skimp.__version__) + body.split('"""', 2)[2]
        text += _FOOTER.format(**names, model_type=data["model_type"])
        (folder / f"{MODELLING}.py").write_text(text)
        save_torch_state_dict(model.state_dict(), folder, shared_tensors_to_discard=_tied(model))
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    plan.write(folder / PLAN_FILE)


def _tied(model: Any) -> list[str]:
    """Names of weights that share storage with another and are rebuilt on loading."""
    keys = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", {})
    return sorted(keys) if getattr(model.config, "tie_word_embeddings", False) else []
