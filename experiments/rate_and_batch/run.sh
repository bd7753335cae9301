#!/usr/bin/env bash
# experiments/rate_and_batch/run.sh WIKITEXT_FOLDER [OVERRIDE...]
# WIKITEXT_FOLDER has wiki.train.tokens and wiki.valid.tokens. RATES names the learning rates. The sweep goes to
# $GPT2X_OUTPUTS, or outputs/ of the project. Started again, it continues: finished jobs are kept.
set -euo pipefail
if (($# < 1)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
wikitext=$(realpath "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
rates=${RATES:-5e-4,1e-3,2e-3,4e-3}
study="${GPT2X_OUTPUTS:-outputs}/studies/rate_and_batch/${rates//,/_}"

# Every job sees the same 4,096 rows of 64 tokens once: 512 updates of 8 rows, or 128 of 32.
python train.py -m hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.sweep.dir="$study/sweep" resume=auto \
  optimizer.learning_rate="$rates" trainer.global_batch_size=8,32 seed=0,1,2 \
  dataset=wikitext2 dataset.path="$wikitext" tokenizer=bpe tracker=none \
  model.num_layers=2 model.num_heads=2 model.hidden_size=64 model.max_seq_len=64 model.dropout=0 \
  trainer.seq_len=64 trainer.micro_batch_size=8 trainer.max_train_rows=4096 trainer.max_epochs=1 \
  trainer.eval_every_steps=64 trainer.max_eval_rows=512 trainer.sample_prompts=[] trainer.keep_best=false \
  schedule.warmup_ratio=0.05 "$@"
python -m gpt2x compare "$study/sweep" --out "$study/report.html" --out "$study/report.md" --out "$study/results.csv"
