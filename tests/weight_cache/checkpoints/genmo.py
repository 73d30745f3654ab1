"""Diffusers weights in Genmo's form, written without a look at the tables under test.

Derived from Genmo's own modules (genmoai/mochi `asymm_models_joint.py`, `layers.py`, `vae/models.py`).
"""

import torch

_VISUAL = {"attn1.to_out.0": "attn.proj_x", "norm1.linear": "mod_x", "ff.net.2": "mlp_x.w2"}
_TEXT = {
    "attn1.to_add_out": "attn.proj_y",
    "norm1_context.linear": "mod_y",
    "norm1_context.linear_1": "mod_y",
    "ff_context.net.2": "mlp_y.w2",
}
_NORMS = {"norm_q": "q_norm_x", "norm_k": "k_norm_x", "norm_added_q": "q_norm_y", "norm_added_k": "k_norm_y"}
_OUTSIDE = {
    "patch_embed.proj": "x_embedder.proj",
    "time_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.pooler.to_kv": "t5_y_embedder.to_kv",
    "time_embed.pooler.to_q": "t5_y_embedder.to_q",
    "time_embed.pooler.to_out": "t5_y_embedder.to_out",
    "time_embed.caption_proj": "t5_yproj",
    "proj_out": "final_layer.linear",
}


def transformer_to_genmo(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor is taken from `state` once; what is left over is an error."""
    state = dict(state)
    made = {"pos_frequencies": state.pop("pos_frequencies")}
    for kind in ("weight", "bias"):
        scale, shift = state.pop(f"norm_out.linear.{kind}").chunk(2)
        made[f"final_layer.mod.{kind}"] = torch.cat([shift, scale])
        for ours, theirs in _OUTSIDE.items():
            made[f"{theirs}.{kind}"] = state.pop(f"{ours}.{kind}")
    layers = 1 + max(int(name.split(".")[1]) for name in state)
    for layer in range(layers):
        ours, theirs = f"transformer_blocks.{layer}.", f"blocks.{layer}."
        for stream, names in (("x", ("to_q", "to_k", "to_v")), ("y", ("add_q_proj", "add_k_proj", "add_v_proj"))):
            made[f"{theirs}attn.qkv_{stream}.weight"] = torch.cat(
                [state.pop(f"{ours}attn1.{name}.weight") for name in names]
            )
        for name, norm in _NORMS.items():
            made[f"{theirs}attn.{norm}.weight"] = state.pop(f"{ours}attn1.{name}.weight")
        for name, stream in (("ff", "x"), ("ff_context", "y")):
            if f"{ours}{name}.net.0.proj.weight" in state:
                up, gate = state.pop(f"{ours}{name}.net.0.proj.weight").chunk(2)
                made[f"{theirs}mlp_{stream}.w1.weight"] = torch.cat([gate, up])
        for name in [n for n in state if n.startswith(ours)]:
            module, _, kind = name.removeprefix(ours).rpartition(".")
            made[f"{theirs}{(_VISUAL | _TEXT)[module]}.{kind}"] = state.pop(name)
    assert not state
    return {name: tensor.contiguous() for name, tensor in made.items()}


def decoder_to_genmo(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Diffusers' `decoder.*` in Genmo's numbering: blocks 0 (latent side) to n + 1 (pixel side)."""
    ups = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("up_blocks."))
    stack = {"norm1.norm_layer": 0, "conv1.conv": 2, "norm2.norm_layer": 3, "conv2.conv": 5}
    made = {}
    for name, tensor in state.items():
        parts = name.split(".")
        module, kind = ".".join(parts[-3:-1]), parts[-1]
        if parts[0] == "conv_in":
            theirs = "blocks.0.0"
        elif parts[0] == "proj_out":
            theirs = "output_proj"
        elif parts[0] == "block_in":
            theirs = f"blocks.0.{int(parts[2]) + 1}.stack.{stack[module]}"
        elif parts[0] == "block_out":
            theirs = f"blocks.{ups + 1}.{parts[2]}.stack.{stack[module]}"
        elif parts[2] == "proj":
            theirs = f"blocks.{int(parts[1]) + 1}.proj"
        else:
            theirs = f"blocks.{int(parts[1]) + 1}.blocks.{parts[3]}.stack.{stack[module]}"
        made[f"{theirs}.{kind}"] = tensor.contiguous()
    assert len(made) == len(state)
    return made


def encoder_to_genmo(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Diffusers' `encoder.*` in Genmo's numbering: one row of layers, from the pixels to the latents."""
    state = dict(state)

    def numbers(prefix: str) -> int:
        return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix))

    made = {"output_proj.weight": state.pop("proj_out.weight")}
    first, downs, last = numbers("block_in.resnets."), numbers("down_blocks."), numbers("block_out.resnets.")
    places = {f"block_in.{{}}.{i}.": f"layers.{1 + i}." for i in range(first)}
    for block in range(downs):
        outer = f"layers.{1 + first + block}.layers."
        for kind in ("weight", "bias"):
            made[f"{outer}0.{kind}"] = state.pop(f"down_blocks.{block}.conv_in.conv.{kind}")
        for i in range(numbers(f"down_blocks.{block}.resnets.")):
            places[f"down_blocks.{block}.{{}}.{i}."] = f"{outer}{1 + i}."
    places |= {f"block_out.{{}}.{i}.": f"layers.{1 + first + downs + i}." for i in range(last)}
    for ours, theirs in places.items():
        attention = ours.format("attentions")
        if f"{attention}to_q.weight" in state:
            parts = [state.pop(f"{attention}to_{name}.weight") for name in "qkv"]
            made[f"{theirs}attn_block.attn.qkv.weight"] = torch.cat(parts)
        for kind in ("weight", "bias"):
            resnet = ours.format("resnets")
            for module, place in (
                ("norm1.norm_layer", 0),
                ("conv1.conv", 2),
                ("norm2.norm_layer", 3),
                ("conv2.conv", 5),
            ):
                made[f"{theirs}stack.{place}.{kind}"] = state.pop(f"{resnet}{module}.{kind}")
            if f"{attention}to_out.0.{kind}" in state:
                made[f"{theirs}attn_block.attn.out.{kind}"] = state.pop(f"{attention}to_out.0.{kind}")
                made[f"{theirs}attn_block.norm.{kind}"] = state.pop(f"{ours.format('norms')}norm_layer.{kind}")
    for kind in ("weight", "bias"):
        made[f"layers.0.{kind}"] = state.pop(f"proj_in.{kind}")
        made[f"output_norm.{kind}"] = state.pop(f"norm_out.norm_layer.{kind}")
    assert not state, sorted(state)
    return {name: tensor.contiguous() for name, tensor in made.items()}
