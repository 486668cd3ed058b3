# The same weights in the files that people have give the same video, bit for bit: three layouts, three types, 8 bits, parts
# named one by one. What is missing, doubled or of another model is refused with the way out.
. "$(dirname "$0")/lib.sh"
need python3
settings="--device ref --size 32x32 --frames 5 --steps 2 --seed 7 -n dull -p a -o x.md5"

# video ARGS...: prints the md5 of the frames
video() {
    good $settings "$@"
    cat x.md5
}

# genmodel's flags; F8 weights (--quant) are stored as such in ComfyUI's files, as F32 of the same values in the others
for kind in "A" "B" "--dtype BF16 A" "--dtype F16 A" "--quant 1 A" "--quant 2 A"; do
    for layout in diffusers original comfyui; do
        "$GENMODEL" --layout $layout $kind $layout || fail "genmodel $layout $kind"
        video -m $layout >$layout.md5
    done
    same "$(cat original.md5)" "$(cat diffusers.md5)" "$kind: original against Diffusers"
    same "$(cat comfyui.md5)" "$(cat diffusers.md5)" "$kind: ComfyUI against Diffusers"
    md5s="${md5s:-} $(cat diffusers.md5)"
    rm -rf diffusers original comfyui
done
same "$(echo $md5s | tr ' ' '\n' | sort -u | wc -l)" 6 "different models with different videos"

for layout in diffusers original comfyui; do "$GENMODEL" --layout $layout A $layout || fail "genmodel $layout"; done
expect=$(echo $md5s | cut -d ' ' -f 1)

# parts by flag, mixed from everywhere; the tokenizer comes with or from beside the text encoder
dit=comfyui/diffusion_models/wan2.1_t2v_test.safetensors
text=comfyui/text_encoders/umt5_xxl_test.safetensors
vae=comfyui/vae/wan_2.1_vae.safetensors
t5=original/models_t5_umt5-xxl-enc-bf16.pth
same "$(video --transformer $dit --text-encoder $text --vae $vae)" "$expect" "three ComfyUI files"
same "$(video --transformer original --text-encoder $t5 --vae original/Wan2.1_VAE.pth)" "$expect" "parts of the original"
same "$(video --transformer $dit --text-encoder diffusers/text_encoder --vae original/Wan2.1_VAE.pth)" "$expect" "a mixture"
same "$(video -m original --vae diffusers/vae --text-encoder $text)" "$expect" "a folder with two other parts"
same "$(video -m diffusers --transformer $dit --tokenizer original/google/umt5-xxl)" "$expect" "another transformer"
same "$(video -m diffusers --text_encoder $t5 --tokenizer diffusers/tokenizer/spiece.model)" "$expect" "a tokenizer by file"

# a name in front of every tensor; the folders of ComfyUI and of its repository; files side by side
"$GENMODEL" --layout comfyui --prefix model.diffusion_model. A prefixed || fail "genmodel --prefix"
same "$(video -m prefixed)" "$expect" "prefixed names"
mkdir models flat && mv prefixed models/models
same "$(video -m models)" "$expect" "ComfyUI's own folder"
mv models/models models/split_files
same "$(video -m models)" "$expect" "split_files"
cp $dit $text $vae flat
same "$(video -m flat)" "$expect" "files side by side"

# a part with stock names is not in the way of the others, nor is its config, or one that belongs to nothing here
echo '{"_class_name": "Other"}' >flat/config.json
same "$(video -m flat)" "$expect" "files side by side and a config"
rm flat/config.json
mkdir shards && cp $text $vae original/config.json original/diffusion_pytorch_model* shards
same "$(video -m shards)" "$expect" "the original's shards beside two other files"
same "$(video -m diffusers --vae original --text-encoder original)" "$expect" "a part out of a whole folder"
rm shards/wan_2.1_vae.safetensors
bad 1 "shards holds no VAE of a Wan2.1 model" $settings -m shards
rm shards/diffusion* && python3 - <<'END' || fail "writing another model"
import struct
h = b'{"double_blocks.0.w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
open("shards/diffusion_pytorch_model.safetensors", "wb").write(struct.pack("<Q", len(h)) + h + b"0")
END
bad 1 "shards is HunyuanVideo or FLUX" $settings -m shards

# variants, sharded and single; the config is theirs
cp -r diffusers variants
for part in transformer text_encoder; do
    for f in variants/$part/*.index.json; do mv $f ${f%.json}.fp16.json; done
done
mv variants/vae/diffusion_pytorch_model.safetensors variants/vae/diffusion_pytorch_model.fp16.safetensors
same "$(video -m variants)" "$expect" "files of a variant"
sed -i 's/AutoencoderKLWan/Other/' variants/vae/config.json
bad 1 "'_class_name' is \"Other\"" $settings -m diffusers --vae variants/vae

# two of a kind
cp original/Wan2.1_VAE.pth flat/other.pth
bad 2 "hold a VAE: say which by --vae FILE" $settings -m flat
same "$(video -m flat --vae flat/other.pth)" "$expect" "one of two by name"
rm flat/other.pth

# what is not there
rm flat/umt5_xxl_test.safetensors
bad 1 "holds no text encoder of a Wan2.1 model" $settings -m flat
mkdir alone && cp $t5 alone/t5.pth
bad 1 "name one by --tokenizer FILE" $settings -m flat --text-encoder alone/t5.pth
bad 2 "all of --transformer, --text-encoder and --vae" $settings --transformer $dit --vae $vae
bad 1 "haste-run: --vae no/such.safetensors: No such file or directory" $settings -m diffusers --vae no/such.safetensors
bad 1 "-m takes the folder of a model" $settings -m diffusers/model_index.json
says "diffusers/model_index.json is neither a safetensors file"
bad 2 "diffusers/vae holds one part of a model: give -m the folder above it" $settings -m diffusers/vae
same "$(video -m diffusers/vae --transformer $dit --text-encoder diffusers/text_encoder)" "$expect" "one part by folder"
mv variants/tokenizer/spiece.model variants/tokenizer/tokenizer.json
bad 1 "none in variants/tokenizer (a tokenizer.json is not read): name one by --tokenizer FILE" $settings -m variants --vae diffusers/vae
mv variants/tokenizer/tokenizer.json variants/text_encoder/spiece.model
same "$(video -m variants --vae diffusers/vae)" "$expect" "a tokenizer beside the text encoder"
mv original/Wan2.1_VAE.pth alone
bad 1 "the VAE should be original/Wan2.1_VAE.pth" $settings -m original
mv alone/Wan2.1_VAE.pth original

# what is something else
cp -r diffusers crossed && rm crossed/transformer/diffusion* && cp $dit crossed/transformer/diffusion_pytorch_model.safetensors
bad 1 "crossed/transformer/config.json is Diffusers', but the weights beside it" $settings -m crossed
says "--transformer FILE"
same "$(video -m crossed --transformer crossed/transformer/diffusion_pytorch_model.safetensors)" "$expect" "the cure"
bad 1 "is the VAE of a Wan model, expected the transformer" $settings -m diffusers --transformer $vae
bad 1 "is the transformer of a Wan model, expected the text encoder" $settings -m diffusers --text-encoder $dit
sed -i 's/"t2v"/"i2v"/' original/config.json
bad 1 "'model_type' is \"i2v\", but only \"t2v\" is supported" $settings -m original
sed -i 's/"i2v"/"t2v"/; s/"num_layers": 2/"num_layers": 3/' original/config.json
bad 1 "'num_layers' is 3, but only 2 is supported" $settings -m original
sed -i 's/"num_layers": 3/"num_layers": 2/' original/config.json
head -c 100000 $t5 >alone/t5.pth
bad 1 "no end record at the end of the file" $settings -m original --text-encoder alone/t5.pth
python3 - <<'END' || fail "writing a hostile checkpoint"
import pickle, zipfile
class Bad:
    def __reduce__(self):
        import os
        return os.system, ("touch hacked",)
with zipfile.ZipFile("alone/bad.pth", "w") as z:
    z.writestr("archive/data.pkl", pickle.dumps({"decoder.conv1.weight": Bad()}, 2))
END
bad 1 "nothing in a file is ever run" $settings -m original --vae alone/bad.pth
test ! -e hacked || fail "a checkpoint was run"

# profiles: made with a Diffusers folder, or with any other layout of the same model
profile() {
    python3 - "$1" "$2" <<'END' || fail "writing a profile"
import json, sys
p = {"format": "haste-profile", "version": 1, "made": {"by": "layouts.sh", "at": "today"},
     "model": {"name": "A", "sha256": json.load(open(sys.argv[1]))["model"], "layers": 2, "heads": 2},
     "made_for": {"width": 32, "height": 32, "frames": 5, "steps": 2, "shift": 3, "guidance": 5, "solver": "unipc"},
     "method": {"name": "xattention", "block": 64, "stride": 8}, "reuse": {"kind": "none"},
     "dense": {"steps": 0, "layers": 0}, "calibration": None,
     "budgets": [{"target": 0.5, "sparsity": 0.5, "error": 0.1, "top_p": [[0.5, 0.6], [0.7, 1]]}]}
json.dump(p, open(sys.argv[2], "w"))
END
}
good $settings -m diffusers --stats s.json && profile s.json diffusers.json
good $settings -m original --stats s.json && profile s.json original.json
for layout in diffusers original comfyui; do
    good $settings -m $layout --profile original.json
    ! grep -q "cannot be checked" err || fail "a warning about the profile of the same shapes"
done
good $settings -m diffusers --profile diffusers.json
! grep -q "cannot be checked" err || fail "a warning about the model's own profile"
good $settings -m comfyui --profile diffusers.json
says "that these files hold the same model cannot be checked in this layout"
"$GENMODEL" --layout original B other || fail "genmodel B"
bad 2 "made for A with 2 layers x 2 heads" $settings -m other --profile original.json
