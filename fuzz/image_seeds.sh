#!/usr/bin/env bash
# Makes seeds for the target `image`: small images by qemu-img, with each of its options, data, snapshots, bitmaps.
set -euo pipefail
into=${1:?usage: image_seeds.sh FOLDER}
mkdir -p "$into"
for options in cluster_size=512 cluster_size=512,refcount_bits=1 cluster_size=512,refcount_bits=64 \
    cluster_size=1k,compat=0.10 cluster_size=4k,lazy_refcounts=on cluster_size=4k,preallocation=metadata \
    cluster_size=4k,compression_type=zstd cluster_size=16k,extended_l2=on; do
    seed="$into/$options"
    rm -f "$seed"
    qemu-img create -q -f qcow2 -o "$options" "$seed" 256k
    qemu-io -f qcow2 -c 'write -q -P 1 0 20k' -c 'write -q -z 64k 32k' "$seed"
    [[ $options == *preallocation* || $options == *refcount_bits=1 ]] || qemu-io -f qcow2 -c 'write -q -c -P 2 128k 32k' "$seed"
    [[ $options == *refcount_bits=1 ]] && continue
    qemu-img snapshot -c one "$seed"
    qemu-io -f qcow2 -c 'write -q -P 3 4k 8k' "$seed"
    [[ $options == *0.10* ]] || qemu-img bitmap --add -g 512 "$seed" changes
done
