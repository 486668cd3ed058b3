# The commands of README.md: every line of a sh block that begins with haste-run (or build/.../haste-run) must be accepted
# with --dry-run added, from a folder like the root of the repository, with small models in place of Wan2.1's files.
. "$(dirname "$0")/lib.sh"
readme=$SOURCE_ROOT/README.md
if [ ! -f "$readme" ]; then
    echo "skipped: no README.md"
    exit 77
fi
awk '/^```/ { inside = !inside && /^```(sh|bash|console)$/; next }
     inside { sub(/^\$ /, ""); if (joined != "") { $0 = joined $0; joined = "" }
              if (/\\$/) { joined = substr($0, 1, length($0) - 1); next }
              if (/^([^ ]*\/)?haste-run /) print }' "$readme" >commands
test -s commands || fail "README.md shows no haste-run command"
if command -v make >/dev/null; then
    make -n -C "$SOURCE_ROOT" demo | grep '^build/haste-run .*--profile ' >>commands || fail "make demo takes no profile"
fi
for profile in "$SOURCE_ROOT"/data/profiles/demo-*.json; do
    echo "haste-run -m data/demo -p a --profile '$profile' -o a.mp4" >>commands
done
mkdir root && cd root && ln -s "$SOURCE_ROOT"/* . || fail "links to the repository"
for layout in diffusers original comfyui; do "$GENMODEL" --layout $layout A $layout || fail "genmodel $layout"; done
cp comfyui/diffusion_models/*.safetensors wan2.1_t2v_1.3B_bf16.safetensors
cp comfyui/text_encoders/*.safetensors umt5_xxl_fp16.safetensors
cp comfyui/vae/*.safetensors wan_2.1_vae.safetensors
mv diffusers Wan2.1-T2V-1.3B-Diffusers && mv original Wan2.1-T2V-1.3B
mkdir ComfyUI && mv comfyui ComfyUI/models
cd ..
while IFS= read -r line; do
    case ${line%% \# *} in *[\|\>\<\;\&\`]* | *'$('*) fail "too clever for this test: $line" ;; esac
    rest=${line#*haste-run}
    rest=${rest%% \# *}
    (cd root && eval "\"\$HASTE_RUN\" $rest --dry-run") >out 2>err || fail "$line"
done <commands
echo "$(wc -l <commands) commands"
