#!/bin/sh
# Every table and figure of the paper at full size (days on a CPU, hours on a GPU). Run it again after a kill: finished
# trials are kept. Usage: tables.sh CIFAR10 CIFAR100 TINY_IMAGENET, the folders of the three archives.
set -eu
recipe=$(dirname "$0")/cifar10-paper.toml
runs=runs/paper

# Table 4.1; without the other two data sets their rows read "not run".
spikeport study compare --config "$recipe" --kind snn --dataset cifar10="$1" --dataset cifar100="$2" \
    --dataset tiny-imagenet="$3" --out $runs/models --resume
spikeport study paper --table 4.1 --study $runs/models

# Table 4.2
spikeport study ablation --config "$recipe" --data "$1" --out $runs/schedules --resume
spikeport study paper --table 4.2 --study $runs/schedules

# Tables 4.3 and 4.4 (twins/), Figures 1.1 (pareto.svg), 4.2 and 4.3 (trials/*/figures/)
spikeport study compare --config "$recipe" --dataset cifar10="$1" --out $runs/twins --resume
spikeport study paper --table 4.3 --study $runs/twins

# The search of section 3
spikeport study search --config "$recipe" --data "$1" --sampler random --trials 50 --out $runs/search --resume

# Several seeds, which the paper leaves to others
spikeport study seeds --config "$recipe" --data "$1" --set model=squeezenet-p --seeds 3 --out $runs/seeds --resume
