#!/bin/sh
# Train a model of the record class for four minutes, pack it into 16,000,000 bytes and prove it, on all GPUs of this
# machine, be it one or eight:
#
#   sh examples/record_run.sh SHARDS TRAINING_TEXT VALIDATION_TEXT FOLDER [KEY=VALUE]...
#
# SHARDS come from `underpar data prepare`, the texts are JSON Lines, FOLDER is new, and KEY=VALUE changes the recipe.
# PROCESSES=2 DEVICES=cpu,cpu in the environment runs the same on a processor.
set -eu
shards=$1 text=$2 validation=$3 folder=$4
shift 4
devices=${DEVICES:-cuda}
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}
budget=${BUDGET:-16000000}
python=${PYTHON:-python3}

on_all() {
    "$python" -m torch.distributed.run --standalone --nproc-per-node="$processes" -m underpar "$@"
}

mkdir "$folder"
on_all train record data.shards="$shards" train.seconds=240 train.fp8=true "$@" -o "$folder/run"
on_all calibrate "$folder/run" --docs "$text" --tokens "${TOKENS:-524288}"
"$python" -m underpar pack "$folder/run" -o "$folder/model.pack" --budget "$budget"
"$python" -m underpar prove "$folder/model.pack" --docs "$validation" --device "$devices" --json > "$folder/proof.json"
"$python" -m underpar ledger "$folder/model.pack"
cat "$folder/proof.json"
