#!/usr/bin/env bash
# The whole path on one machine: scenes -> corpus -> pre-training, stopped once and resumed -> encoder -> probe.
#   docs/demo.sh OUT [SCENES]     OUT: a new folder, or one of an earlier demo, which is replaced
#                                 SCENES: a folder of real SAR GeoTIFFs; without it scenes are simulated
set -euo pipefail
out=$1
scenes=${2:-}
say() { printf '\n$ %s\n' "$*"; "$@"; }

# an earlier demo is replaced, anything else is left alone
if [ -e "$out" ] && [ ! -e "$out/.demo" ]; then
  if [ ! -d "$out" ] || [ -n "$(ls -A "$out")" ]; then
    echo "$out: is there already and was not made by the demo; choose another OUT, or move it away" >&2
    exit 1
  fi
fi
rm -rf "$out"
mkdir -p "$out"
touch "$out/.demo"
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
say dic3l evaluate "$out/encoder.pt" --data "$out/simulated" --out "$out/evaluation" --seeds 3
echo "Minutes on a CPU show that the path works. Most of what they bring over random weights comes in the first steps, and"
echo "the probe sees the scenes of the pre-training (not their labels): it is no measure of the method."

printf '\nfiles that this made:\n'
find "$out" -type f -not -path '*/.build/*' -not -name .demo | sort
