# Damaged models: the message names the file and what is wrong with it; NaN is traced to step and place.
. "$(dirname "$0")/lib.sh"
need python3
model A

fresh() {
    rm -rf M
    cp -r A M
}
edit() { # FILE KEY NUMBER
    sed "s/\"$2\":[[:space:]]*[0-9]*/\"$2\": $3/" "$1" >edited
    if cmp -s edited "$1"; then fail "no $2 in $1"; fi
    mv edited "$1"
}
try="-m M --device ref --size 32x32 --frames 5 --steps 3 --seed 7 -p a -o x.md5"
shard=diffusion_pytorch_model-00002-of-00003.safetensors

fresh; rm M/transformer/$shard
bad 1 "$shard" $try
fresh; truncate -s -100 M/transformer/$shard
bad 1 "$shard" $try
says truncated
fresh; truncate -s 5 M/vae/diffusion_pytorch_model*.safetensors
bad 1 "M/vae/diffusion_pytorch_model" $try
fresh; printf '\377\377\377\377\377\377\377\177' | dd of=M/transformer/$shard conv=notrunc 2>dd
bad 1 "$shard" $try
fresh; rm M/transformer/config.json
bad 1 "transformer/config.json" $try
fresh; edit M/transformer/config.json num_layers 3
bad 1 "blocks.2." $try
fresh; edit M/transformer/config.json ffn_dim 336
bad 1 "336" $try
fresh; echo '{' >M/vae/config.json
bad 1 "vae/config.json" $try
fresh; rm M/tokenizer/spiece.model
bad 1 "spiece.model" $try
fresh; printf 'not a model' >M/tokenizer/spiece.model
bad 1 "spiece.model" $try

# NaN in one weight of the second block, and in the text encoder
poison() {
    for f in M/$1/*.safetensors; do
        python3 "$(dirname "$0")/nan.py" "$f" "$2" 2>/dev/null && return
    done
    fail "no tensor $2"
}
fresh; poison transformer blocks.1.ffn.net.2.weight
bad 1 "step 0" $try
says "block"
says "NaN"
fresh; poison text_encoder encoder.block.0.layer.0.SelfAttention.q.weight
bad 1 "text" $try
says "NaN"
test ! -e x.md5 || fail "a damaged model left a file"
