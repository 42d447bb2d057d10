#!/usr/bin/env bash
# The whole path on one machine: scenes -> corpus -> pre-training, stopped once and resumed -> encoder -> probe.
#   docs/demo.sh OUT [SCENES]     SCENES: a folder of real SAR GeoTIFFs; without it scenes are simulated
set -euo pipefail
out=$1
scenes=${2:-}
say() { printf '\n$ %s\n' "$*"; "$@"; }

rm -rf "$out"
mkdir -p "$out"
sarsense simulate --help >/dev/null # fails here, and not later, where the environment is not installed
say sarsense simulate "$out/simulated" --scenes 14 --size 1024 --looks 4 --seed 5
more=()
if [ -z "$scenes" ]; then
  scenes=$out/simulated/scenes
else
  more=(--allow-unplaced)
fi
say sarsense build "$scenes" --out "$out/corpus" --tile-size 128 ${more[@]+"${more[@]}"}
say sarsense shards ls "$out/corpus" --limit 5
say sarsense shards stats "$out/corpus" --plot "$out/histograms.png"
say sarsense shards show "$out/corpus" --out "$out/contact-sheet.png" --footprints "$out/footprints.png"
say sarsense shards verify "$out/corpus"

# stopped in the middle as a job manager would stop it, then the same command again
pretrain=(dic3l pretrain "$out/corpus" --out "$out/run" --preset smoke)
printf '\n$ %s   # SIGTERM after a minute\n' "${pretrain[*]}"
timeout --signal TERM 60 "${pretrain[@]}" || [ $? -eq 124 ]
say "${pretrain[@]}"
say dic3l export "$out/run" --out "$out/encoder.pt"
# labels are those of the simulated scenes, also where the corpus is of real ones
say dic3l evaluate "$out/encoder.pt" --data "$out/simulated" --out "$out/evaluation" --seeds 1

printf '\nfiles that this made:\n'
find "$out" -type f -not -path '*/.build/*' | sort
