#!/usr/bin/env bash
# Every comparison on one GPU, in under 20 minutes: bash benchmarks/gpu.sh [FOLDER]
#
# HAS NOT BEEN RUN: no GPU was at hand. Its times are estimates; what is not begun after 18 minutes is left out, and said.
# Needs, in the Python that PYTHON names: this package with jax[cuda12] (or jax[cuda13]), and torch for the same GPU;
# segmentation_models_pytorch if it shall take part. PADDLESEG_PYTHON may name a Python that has Paddle and PaddleSeg.
# FOLDER (gpu_benchmarks by default) gets a log and a JSON file of each.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
folder=${1:-gpu_benchmarks}
limit=1080
mkdir -p "$folder"
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm,utilization.gpu --format=csv | tee "$folder/gpu.csv"
"$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu" and "jax sees no GPU here: pip install jax[cuda12]")' ||
  exit 1
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available() and "torch sees no GPU here")' || exit 1

# NAME SECONDS MODULE ARGUMENT…: one measurement, ended after so many seconds.
failed=0
measure() {
  local name=$1 seconds=$2 module=$3
  shift 3
  if ((SECONDS > limit)); then
    echo "== $name: left out, for $SECONDS s have passed" | tee -a "$folder/left_out.txt"
    return
  fi
  echo "== $name (after $SECONDS s)"
  timeout "$seconds" "$python" -m "$module" --json="$folder/$name.json" "$@" >"$folder/$name.log" 2>&1 ||
    { echo "   failed or took over $seconds s: $folder/$name.log" && failed=1; }
  # The tables; not what was said on the way to them.
  grep -E '^(program|train|predict|evaluate|contestant|ours|torch|smp|paddleseg|left out|TFLOP|Memory|flip|plain)' \
    "$folder/$name.log"
}

r50=(--config=configs/cityscapes_r50.py --config.model.dtype=bfloat16)
r101=(--config=configs/cityscapes_r101_769.py --config.model.dtype=bfloat16)
compare=(--rounds=3 --turn_seconds=5 --start_seconds=240)
fast=("--torch_variants=eager-channels_last,compiled-channels_last" --nosmp)
[[ -n ${PADDLESEG_PYTHON:-} ]] && compare+=(--paddleseg_python="$PADDLESEG_PYTHON")

measure train_r50_8_pictures 420 benchmarks.compare "${r50[@]}" --work=train "${compare[@]}"
measure train_r50_32_pictures 240 benchmarks.compare "${r50[@]}" --work=train --config.batch_size=32 "${compare[@]}" "${fast[@]}"
measure train_r101_769_8_pictures 300 benchmarks.compare "${r101[@]}" --work=train "${compare[@]}" "${fast[@]}"
measure evaluate_r50_1024x2048 300 benchmarks.compare "${r50[@]}" --work=evaluate,evaluate-flip-scales \
  --size=1024,2048 --config.eval.batch_size=4 "${compare[@]}" --torch_variants=eager,eager-channels_last --nosmp
measure ours_train_r50 180 dlv3p_jax.benchmark "${r50[@]}" --kind=train
measure ours_evaluate_r50 240 dlv3p_jax.benchmark "${r50[@]}" --kind=evaluate --size=1024,2048 --config.eval.batch_size=4
measure train_r50_16_pictures 240 benchmarks.compare "${r50[@]}" --work=train --config.batch_size=16 "${compare[@]}" "${fast[@]}"
measure predict_r50 240 benchmarks.compare "${r50[@]}" --work=predict "${compare[@]}" "${fast[@]}"
echo "done after $SECONDS s: $folder"
exit "$failed"
