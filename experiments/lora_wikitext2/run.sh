#!/usr/bin/env bash
# experiments/lora_wikitext2/run.sh BASE WIKITEXT_FOLDER [OVERRIDE...]
# BASE is a Hugging Face GPT-2 directory of 929,536 parameters (4 layers of 128, 64 positions), trained on Shakespeare.
# WIKITEXT_FOLDER has wiki.train.tokens and wiki.valid.tokens. Runs go to $GPT2X_OUTPUTS, or outputs/ of the project.
set -euo pipefail
if (($# < 2)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
base=$(realpath "$1") wikitext=$(realpath "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
study="${GPT2X_OUTPUTS:-outputs}/studies/lora_wikitext2/$(date +%Y-%m-%d_%H-%M-%S)"
data=(dataset=wikitext2 dataset.path="$wikitext" tracker=none)

fine_tune() { # NAME RATE [OVERRIDE...]
  local name=$1 rate=$2
  shift 2
  python train.py task=finetune load="$base" "${data[@]}" model=gpt2_tiny model.num_layers=4 model.num_heads=4 \
    model.hidden_size=128 model.max_seq_len=64 model.dropout=0 trainer.seq_len=63 trainer.global_batch_size=32 \
    trainer.micro_batch_size=32 trainer.max_steps=600 trainer.eval_every_steps=200 trainer.max_eval_rows=1280 \
    trainer.sample_prompts=[] trainer.keep_best=false optimizer.learning_rate="$rate" schedule.warmup_steps=20 \
    hydra.run.dir="$study/$name" "$@"
}

evaluate() { # NAME [OVERRIDE...]
  local name=$1
  shift
  python evaluate.py load="$base" "${data[@]}" 'evaluation.protocols=[reference]' evaluation.batch_size=32 \
    output="$study/$name.json" "$@"
}

evaluate base
for rate in ${RATES:-1e-3 3e-3}; do
  fine_tune "full_$rate" "$rate" "$@"
  evaluate "full_$rate" load="$study/full_$rate"
  for rank in r8 r64; do
    fine_tune "${rank}_$rate" "$rate" lora=$rank "$@"
    evaluate "${rank}_$rate" "adapters=[$study/${rank}_$rate]"
  done
done
python - "$study" <<'PYTHON'
import json, sys
from pathlib import Path

for file in sorted(Path(sys.argv[1]).glob("*.json")):
    results = json.loads(file.read_text())["results"]
    found = results.get("reference") or next(iter(results.values()))["reference"]
    print(f"{file.stem:12} loss {found['loss']:.4f}  ppl {found['ppl']:.2f}")
PYTHON
