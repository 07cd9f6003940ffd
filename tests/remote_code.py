"""Checkpoints that bring their own code, written from a denoiser of ours."""

import json
from pathlib import Path

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser

CODE = """
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutput


class OddConfig(Qwen2Config):
    model_type = "odd"


class OddModel(Qwen2ForCausalLM):
    config_class = OddConfig

    def forward(self, input_ids, attention_mask=None, **ignored):
        assert not torch.is_tensor(attention_mask) or attention_mask.dtype == torch.int64
        mask = {mask}
        hidden = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False)
        return CausalLMOutput(logits=self.lm_head(hidden.last_hidden_state) * {scale})
"""


def write(
    folder: Path, denoiser: Denoiser, *, honours_padding: bool = True, scale: float = 1.0
) -> Path:
    """Saves the denoiser under an unknown model_type, saying nothing of its alignment."""
    checkpoints.save_denoiser(denoiser, folder)
    mask = "attention_mask" if honours_padding else "None"
    (folder / "modeling_odd.py").write_text(
        CODE.replace("{mask}", mask).replace("{scale}", str(scale))
    )
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["logit_alignment"]
    config["model_type"] = "odd"
    config["auto_map"] = {
        "AutoConfig": "modeling_odd.OddConfig",
        "AutoModelForCausalLM": "modeling_odd.OddModel",
    }
    path.write_text(json.dumps(config))
    return folder
