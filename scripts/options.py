"""What several commands say of an option."""

HELP = {
    "base": "For Genmo's and ComfyUI's forms: a Diffusers-layout checkpoint that holds the text encoder and tokenizer. "
    "[default: genmo/mochi-1-preview in the local cache]",
    "precision": "accurate, bf16, default, bf8 or fast, from the most exact to the fastest (docs/precision.md).",
    "lora": "A LoRA's .safetensors file, or FILE:STRENGTH; may be given several times.",
    "cache_dir": "Where converted weights are kept. [default: MOCHI_TT_CACHE_DIR, else TT_DIT_CACHE_DIR, else the "
    "user's cache directory]",
}
