#!/bin/sh
# Packs programs with the libraries they need, for a machine where nothing can be installed:
#     scripts/bundle.sh BUILD OUT.tar.xz [PROGRAM...]      (paths inside BUILD; default: what is built of ours)
# Left out, because the machine must have its own: the C and C++ runtime (glibc 2.36 or newer), the CUDA driver and
# CUDA 13's libraries. There: tar xf OUT.tar.xz && haste/haste-run --version
set -eu
[ $# -ge 2 ] || { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
build=$1 out=$2
shift 2
[ $# -gt 0 ] || for p in haste-run haste-calibrate haste-eval; do [ ! -x "$build/$p" ] || set -- "$@" "$p"; done
[ $# -gt 0 ] || { echo "bundle: no program in $build; build first" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/haste/bin" "$tmp/haste/lib"
theirs='^(linux-vdso|ld-linux|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s|libcuda|libcudart|libcublas|libcublasLt|libcudnn[a-z_]*)\.so'
for p; do
    name=$(basename "$p")
    cp "$build/$p" "$tmp/haste/bin/$name"
    strip "$tmp/haste/bin/$name"
    ldd "$build/$p" | awk '/not found/ {print "bundle: missing " $1 > "/dev/stderr"} $2 == "=>" && $3 ~ /^\// {print $3}' |
        while read -r lib; do
            basename "$lib" | grep -Eq "$theirs" || cp -Lu "$lib" "$tmp/haste/lib/"
        done
    cat >"$tmp/haste/$name" <<END
#!/bin/sh
here=\$(dirname "\$(readlink -f "\$0")")
LD_LIBRARY_PATH="\$here/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" exec "\$here/bin/$name" "\$@"
END
    chmod +x "$tmp/haste/$name"
done
tar -C "$tmp" -c haste | xz -9 >"$out.part"
mv "$out.part" "$out"
echo "$out: $(du -h "$out" | cut -f1), $(ls "$tmp/haste/lib" | wc -l) libraries; programs: $*"
