#!/usr/bin/env bash
# experiments/large_models/run.sh BASE WIKITEXT_FOLDER
# BASE is a Hugging Face GPT-2 directory of 929,536 parameters (4 layers of 128, 64 positions), trained on Shakespeare.
# WIKITEXT_FOLDER has wiki.train.tokens and wiki.valid.tokens. Runs go to $GPT2X_OUTPUTS, or outputs/ of the project.
set -euo pipefail
if (($# < 2)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
base=$(realpath "$1") wikitext=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
study="${GPT2X_OUTPUTS:-outputs}/studies/large_models/$(date +%Y-%m-%d_%H-%M-%S)"
data=(dataset=wikitext2 dataset.path="$wikitext" tracker=none)

for layout in ${LAYOUTS:-single tp2}; do
  python train.py task=finetune load="$base" "${data[@]}" parallel="$layout" model=gpt2_tiny model.num_layers=4 \
    model.num_heads=4 model.hidden_size=128 model.max_seq_len=64 model.dropout=0 trainer.seq_len=63 \
    trainer.global_batch_size=32 trainer.micro_batch_size=16 trainer.max_steps=60 trainer.eval_every_steps=60 \
    trainer.max_eval_rows=640 trainer.sample_prompts=[] trainer.keep_best=false optimizer.learning_rate=1e-3 \
    schedule.warmup_steps=5 hydra.run.dir="$study/$layout"
  python evaluate.py load="$study/$layout" "${data[@]}" 'evaluation.protocols=[reference]' evaluation.batch_size=32 \
    output="$study/$layout.json"
done
python predict.py load="$study/single" 'prompts=["The "]' generation.max_new_tokens=40 output="$study/text.jsonl"
python - "$study" <<'PYTHON'
import json, statistics, sys
from pathlib import Path

for file in sorted(Path(sys.argv[1]).glob("*.json")):
    found = json.loads(file.read_text())["results"]["reference"]
    lines = (json.loads(line) for line in (file.with_suffix("") / "metrics.jsonl").open())
    speed = statistics.median(line["perf/tokens_per_s"] for line in lines if "perf/tokens_per_s" in line)
    print(f"{file.stem:8} loss {found['loss']:.6f}  ppl {found['ppl']:.4f}  median {speed:,.0f} tokens/s")
PYTHON
