"""Export formats, one file each: `formats/NAME.py` is `gpt2x convert --to NAME` and defines `export` (base.Export)."""
