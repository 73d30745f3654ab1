"""What merging a LoRA at load costs: `python -m tests.weight_cache.lora_cost [GIGABYTES] [PRECISION]`.

Makes a checkpoint of Mochi's widths and a LoRA of rank 16 on q, k, v and output of all blocks, as Genmo's trainer
makes it, and loads with and without it on a mock 2x4 mesh. The transfer to a card is not in it.
"""

import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import torch
from safetensors.torch import save_file

from models.device import open_mesh
from models.jobs.weights_benchmark import _make_checkpoint
from models.mochi.config import TransformerConfig
from models.mochi.transformer import MochiTransformer
from models.parallel import Layout, Mesh
from weight_cache.checkpoints.component import Component
from weight_cache.checkpoints.lora import LoraRequest
from weight_cache.merge import Merge
from weight_cache.precision import set_precision
from weight_cache.store import Store

RANK = 16


def write_lora(component: Component, path: Path) -> None:
    """Write a LoRA under Genmo's names."""
    text = component.shape("transformer_blocks.0.attn1.add_q_proj.weight")[1]
    visual = component.shape("transformer_blocks.0.attn1.to_q.weight")[1]
    blocks = component.config["num_layers"]
    tensors = {}
    for block in range(blocks):
        for name, out, wide in (
            ("qkv_x", 3 * visual, visual),
            ("qkv_y", 3 * visual, text),
            ("proj_x", visual, visual),
            ("proj_y", text, visual),
        ):
            if name != "proj_y" or block < blocks - 1:
                tensors[f"blocks.{block}.attn.{name}.lora_A"] = torch.randn(RANK, wide).bfloat16()
                tensors[f"blocks.{block}.attn.{name}.lora_B"] = torch.randn(out, RANK).bfloat16() * 0.01
    said = {f"{kind}_lora_{what}": RANK for kind in ("qkv_proj", "out_proj") for what in ("rank", "alpha")}
    save_file(tensors, path, {"kwargs": json.dumps(said)})


def main() -> None:
    """Print the seconds and the bytes."""
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    precision = sys.argv[2] if len(sys.argv) > 2 else "bf16"
    with tempfile.TemporaryDirectory() as name, open_mesh((2, 4), "dry-run") as opened:
        folder = Path(name)
        made = _make_checkpoint(folder, gigabytes)
        component = Component(folder / "transformer")
        write_lora(component, folder / "lora.safetensors")
        mesh, store = Mesh(opened.device, Layout.default((2, 4), 24)), Store(folder / "store")

        def load(*loras: LoraRequest) -> tuple[float, float, MochiTransformer]:
            model = MochiTransformer(TransformerConfig.from_dict(component.config), mesh)
            start, used = perf_counter(), process_time()
            store.load(model, component, precision=precision, loras=loras)
            taken, used = perf_counter() - start, process_time() - used
            model.release()
            return taken, used, model

        first, used_first, _ = load()
        plain = min(load()[0] for _ in range(2))
        request = LoraRequest(folder / "lora.safetensors", 0.8)
        merged, used, model = min((load(request) for _ in range(2)), key=lambda found: found[:2])
        set_precision(model, precision)
        merge = Merge(model, component, [request])
        changed = sum(p.shape[-1] * p.shape[-2] for _, prefix, p in model.parameters() if merge.changes(prefix, p))
        entries = store.entries()
        print(
            f"{precision}, checkpoint {made['bytes'] / 1e9:.2f} GB in {made['blocks']} blocks: converting and loading "
            f"{first:.1f} s ({used_first:.1f} of CPU time), loading {plain:.2f} s, with a LoRA on {changed / 1e9:.2f} "
            f"billion weights {merged:.2f} s ({used:.1f} of CPU time, {used / changed * 1e9:.0f} for each billion); "
            f"{len(entries)} entry of {sum(entry.bytes for entry in entries) / 1e9:.2f} GB, none for the LoRA"
        )


if __name__ == "__main__":
    main()
