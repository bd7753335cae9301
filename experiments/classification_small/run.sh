#!/usr/bin/env bash
# experiments/classification_small/run.sh DATA_FOLDER [PRETRAINED]
# DATA_FOLDER has wikitext-2, sst-2, cola, ag_news and imdb. PRETRAINED is a run of the first command; without it the
# script pretrains. Runs go to $GPT2X_OUTPUTS, or outputs/ of the project. DATASETS names those wanted.
set -euo pipefail
if (($# < 1)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
data=$(realpath "$1") pretrained=${2:+$(realpath "$2")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
study="${GPT2X_OUTPUTS:-outputs}/studies/classification_small/$(date +%Y-%m-%d_%H-%M-%S)"
shape=(model=gpt2_tiny model.name=small_256 model.hidden_size=256 model.dropout=0 trainer.seq_len=256 tracker=none)

if [[ -z $pretrained ]]; then
  pretrained="$study/pretrain"
  python train.py dataset=wikitext2 dataset.path="$data/wikitext-2" tokenizer=bpe tokenizer.vocab_size=8192 \
    "${shape[@]}" trainer.global_batch_size=8 trainer.max_steps=1200 trainer.eval_every_steps=400 \
    trainer.max_eval_rows=160 optimizer.learning_rate=1e-3 schedule.warmup_steps=50 hydra.run.dir="$pretrained"
fi

fine_tune() { # NAME FOLDER BATCH STEPS RATE
  local run="$study/$1_$3x$4"
  python train.py task=classification dataset="$1" dataset.path="$data/$2" load="$pretrained" "${shape[@]}" \
    trainer.global_batch_size="$3" trainer.max_steps="$4" optimizer.learning_rate="$5" schedule=linear \
    schedule.warmup_ratio=0.1 hydra.run.dir="$run"
  python evaluate.py load="$run" dataset="$1" dataset.path="$data/$2" evaluation.batch_size=32 tracker=none \
    output="$run/results.json"
  python experiments/classification_small/baselines.py "$1" "$data/$2" $(($3 * $4)) "$run/results.json"
}

for name in ${DATASETS:-sst2 ag_news cola imdb}; do
  case $name in
    sst2) fine_tune sst2 sst-2 32 150 5e-4 ;;
    ag_news) fine_tune ag_news ag_news 16 100 5e-4 ;;
    cola) fine_tune cola cola 32 100 5e-4 ;;
    imdb)
      fine_tune imdb imdb 8 60 5e-4
      fine_tune imdb imdb 16 120 2e-4
      ;;
  esac
done
