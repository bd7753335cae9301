#!/usr/bin/env bash
# experiments/wikitext2_tiny/run.sh WIKITEXT_FOLDER TOKENIZER_FOLDER [OVERRIDE...]
# WIKITEXT_FOLDER has wiki.train.tokens and wiki.valid.tokens, TOKENIZER_FOLDER vocab.json and merges.txt of GPT-2.
# Runs go to $GPT2X_OUTPUTS, or outputs/ of the project.
set -euo pipefail
if (($# < 2)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
wikitext=$(realpath "$1") tokenizer=$(realpath "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

run="${GPT2X_OUTPUTS:-outputs}/studies/wikitext2_tiny/$(date +%Y-%m-%d_%H-%M-%S)"
python train.py dataset=wikitext2 dataset.path="$wikitext" tokenizer=gpt2 tokenizer.path="$tokenizer" \
  trainer.seq_len=256 trainer.global_batch_size=8 trainer.micro_batch_size=4 trainer.max_steps=300 \
  trainer.eval_every_steps=50 trainer.max_eval_rows=80 \
  schedule.warmup_ratio=0.05 hydra.run.dir="$run" "$@"

newest=$(find "$run/checkpoints" -maxdepth 1 -name 'step_*' | sort -V | tail -1)
python evaluate.py load="$newest" dataset=wikitext2 dataset.path="$wikitext" output="$run/results.json"
