#!/bin/sh
# Small qcow2 images of qemu-img for the corpus of the target qcow2, each behind a set-up and requests: see the target for the layout.
# From the repository's root: fuzz/seeds/qcow2.sh, then cargo +nightly fuzz run qcow2 -- -max_len=200000
set -eu
corpus="$(dirname "$0")/../corpus/qcow2"
mkdir -p "$corpus"
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
image="$dir/image.qcow2"

# seed NAME: the image with a few writes, zeroes, discards, a flush, a crash and a reopening behind flags "an image follows".
seed() {
    {
        printf '\001\007\000\000\002'
        printf '\000\000\003\004\006\001\002\005\010\002\000\007\012\000\000\000\105\001\004\011\015\000\000\000\016\000\000\000\003\002\001\017'
        cat "$image"
    } > "$corpus/$1"
}

# make NAME SIZE OPTIONS: a new image, and as a seed what it is after some requests.
make() {
    rm -f "$image"
    qemu-img create -q -f qcow2 -o "$3" "$image" "$2"
    qemu-io -t unsafe -f qcow2 -c 'write -P 161 0 3k' -c 'write -z 2k 1k' -c 'write -P 178 12k 1k' "$image" > "$dir/said"
    seed "$1"
}

make v2 40k compat=0.10,cluster_size=512
make v3 40k cluster_size=512
make wide-counts 40k cluster_size=512,refcount_bits=64
make narrow-counts 40k cluster_size=512,refcount_bits=1
make lazy 40k cluster_size=512,lazy_refcounts=on
make larger-clusters 64k cluster_size=4096
make subclusters 64k cluster_size=16k,extended_l2=on
make preallocated 16k cluster_size=512,preallocation=metadata
make snapshot 40k cluster_size=512
qemu-img snapshot -c one "$image"
qemu-io -t unsafe -f qcow2 -c 'write -P 3 1k 2k' "$image" > "$dir/said"
seed snapshot
make bitmap 64k cluster_size=512
qemu-img bitmap --add "$image" one
qemu-io -t unsafe -f qcow2 -c 'write -P 3 1k 2k' "$image" > "$dir/said"
seed bitmap
for type in zlib zstd; do
    qemu-img convert -q -c -f qcow2 -O qcow2 -o "cluster_size=4096,compression_type=$type" "$image" "$dir/compressed.qcow2"
    cp "$dir/compressed.qcow2" "$image"
    seed "compressed-$type"
done
