"""Diffusers' `MochiPipeline` on a Tenstorrent mesh: the same names, arguments and results for scripts written for it.

`pipeline` has the class; `loading` what `from_pretrained` takes; `components` what `pipe.vae`, `pipe.transformer` and
their like are; `adapters` the LoRAs; `measures` what a GPU needs and a mesh does not; `outputs` what a call returns.
Nothing here imports Diffusers unless a user's own objects come from it.
"""
