"""What several commands say of an option."""

HELP = {
    "base": "For Genmo's and ComfyUI's forms: a Diffusers-layout checkpoint that holds the text encoder and tokenizer. "
    "[default: genmo/mochi-1-preview in the local cache]",
    "precision": "accurate, bf16, default, bf8 or fast, from the most exact to the fastest (docs/precision.md).",
    "lora": "A LoRA's .safetensors file, or FILE:STRENGTH; may be given several times.",
    "first_frames": "Where the decoder drops surplus first frames: genmo (inside each upsampling, as Mochi's VAE was "
    "trained) or diffusers (at the end). The first ten frames differ. [default: by the checkpoint; genmo for Mochi 1 "
    "preview's VAE in every form, docs/weights.md]",
    "empty_prompt": "What an empty prompt means, the negative one too: zeros (no text takes part, as in Genmo's code) "
    "or encoded (T5 encodes the end token, as in Diffusers and ComfyUI). [default: by the checkpoint, docs/weights.md]",
    "cache_dir": "Where converted weights are kept. [default: MOCHI_TT_CACHE_DIR, else TT_DIT_CACHE_DIR, else the "
    "user's cache directory]",
}
