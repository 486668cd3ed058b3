#!/bin/sh
# nvcc for one file, strict about what ptxas remarks on but would let pass:
#     scripts/nvcc.sh NVCC ARGUMENTS...
# - C7510 to C7519: warpgroup products (wgmma) put in a row, or fences added, because the code around them is not as
#   they need it; any of these costs most of what Hopper's kernels gain.
# - spills in the kernels whose loops are made of such products: attention, block scores, k-means, the residual stream.
set -eu
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
"$@" -Xptxas -v 2>"$log" || status=$?
grep -vE '^ptxas info|^ *[0-9]+ bytes stack frame|^$' "$log" >&2 || true
[ $status = 0 ] || exit $status
if grep -E 'C751[0-9]' "$log" >&2; then
    echo "nvcc.sh: products are not issued as written" >&2
    exit 1
fi
awk '/Compiling entry function/ { name = $0 }
     /spill stores/ && name ~ /attn_hopper|fold_wgmma|near_by_wgmma|residual_wgmma/ && !/ 0 bytes spill stores, 0 bytes spill loads/ { print name; print; bad = 1 }
     END { exit bad }' "$log" >&2 || { echo "nvcc.sh: registers are spilled" >&2; exit 1; }
