"""What training adds to the model classes of diffusers and transformers: whole-clip VAE passes,
starting values, a shorter but equal cross-attention, the Muon optimiser and the tagging heads."""
import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from grammar import COLORS, MOTION_NAMES, OBJECT_COLORS, PATTERNS, PLACE_NAMES, SHAPES

TEXT_LEN = 512        # what the pipeline pads prompts to
TOKENS = 40           # rows kept in training; the longest caption has fewer


def make_vae(base=24):
    vae = AutoencoderKLWan(base_dim=base, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1,
                           temperal_downsample=[False, True, True])
    init_vae(vae)
    return vae


def make_text_encoder(vocab):
    enc = UMT5EncoderModel(UMT5Config(
        vocab_size=vocab, d_model=256, d_kv=64, d_ff=512, num_layers=3, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=32, relative_attention_max_distance=128,
        pad_token_id=0, eos_token_id=1))
    init_text_encoder(enc)
    return enc


def make_transformer(heads=3, layers=8, ffn=1280):
    dit = WanTransformer3DModel(num_attention_heads=heads, attention_head_dim=128, in_channels=16, out_channels=16,
                                text_dim=256, freq_dim=256, ffn_dim=ffn, num_layers=layers, cross_attn_norm=True)
    init_transformer(dit)
    return dit


# ---------------------------------------------------------------- VAE, whole clip at once
# diffusers runs the VAE over chunks of 1, 4, 4, ... frames with caches. Over a whole clip the causal
# convolutions give the same numbers without any cache; only the two resampling rules below need care.

def _frames2d(module, x):
    b, c, t, h, w = x.shape
    y = module(x.transpose(1, 2).reshape(b * t, c, h, w))
    return y.view(b, t, *y.shape[1:]).transpose(1, 2)


def _resample(layer, x):
    if layer.mode == "upsample3d" and x.shape[2] > 1:       # frame 0 bypasses the time convolution
        rest = layer.time_conv(x[:, :, 1:])
        b, c2, t, h, w = rest.shape
        rest = rest.view(b, 2, c2 // 2, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, c2 // 2, 2 * t, h, w)
        x = torch.cat([x[:, :, :1], rest], 2)
    x = _frames2d(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], 2)
    return x


def vae_encode(vae, x):
    """[B,3,T,H,W] in -1..1 -> mean and log-variance of the latents, [B,16,t,h,w] each."""
    e = vae.encoder
    x = e.conv_in(x)
    for layer in e.down_blocks:
        x = _resample(layer, x) if isinstance(layer, WanResample) else layer(x)
    x = e.conv_out(F.silu(e.norm_out(e.mid_block(x))))
    return vae.quant_conv(x).float().chunk(2, 1)


def vae_decode(vae, z):
    d = vae.decoder
    x = d.mid_block(d.conv_in(vae.post_quant_conv(z)))
    for block in d.up_blocks:
        for res in block.resnets:
            x = res(x)
        if block.upsamplers is not None:
            x = _resample(block.upsamplers[0], x)
    return d.conv_out(F.silu(d.norm_out(x)))


@torch.no_grad()
def init_vae(vae):
    """Start near "copy pixels": residual branches at zero, down-sampling as space-to-depth, copies elsewhere."""
    for m in vae.modules():
        if isinstance(m, WanResidualBlock):
            m.conv2.weight.zero_(), m.conv2.bias.zero_()
            if isinstance(m.conv_shortcut, nn.Conv3d):
                w = m.conv_shortcut.weight.zero_()
                for c in range(max(w.shape[:2])):
                    w[c % w.shape[0], c % w.shape[1]] = 1 if w.shape[0] >= w.shape[1] else w.shape[0] / w.shape[1]
                m.conv_shortcut.bias.zero_()
        elif isinstance(m, WanAttentionBlock):
            m.proj.weight.zero_(), m.proj.bias.zero_()
        elif isinstance(m, WanResample):
            conv = m.resample[1]
            conv.weight.mul_(0.3), conv.bias.zero_()
            out, inn = conv.weight.shape[:2]
            group = {24: 3, 48: 12, 96: 48}.get(out, max(1, out // 2))
            for c in range(max(out, inn)):
                if m.mode.startswith("down"):               # tap = which of the 2 x 2 pixels this channel keeps
                    tap = (c // group) % 4
                    conv.weight[c, c, tap // 2, tap % 2] += 1
                else:
                    conv.weight[c % out, c % inn, 1, 1] += out / inn
            if hasattr(m, "time_conv"):
                conv = m.time_conv
                conv.weight.mul_(0.3), conv.bias.zero_()
                for c in range(conv.weight.shape[0]):
                    tap = 2 if m.mode.startswith("up") else 1 + c % 2
                    conv.weight[c, c % conv.weight.shape[1], tap] += 1
    w = vae.encoder.conv_in.weight.mul_(0.3)
    for c in range(w.shape[0]):
        w[c, c % 3, 2, 1, 1] += 1


# ---------------------------------------------------------------- text encoder

def bucket_distance(b):
    """A distance that falls into bucket b of one direction."""
    return b if b < 8 else [8, 12, 16, 23, 32, 46, 64, 91][b - 8]


@torch.no_grad()
def init_text_encoder(enc):
    """Heads that look at the left neighbour, the right neighbour and the neighbourhood.

    From zero position biases a small encoder trained with Adam stays a bag of words: attention has no
    1/sqrt(d) and no norm on q and k, so they grow until it is one-hot on the token itself.
    """
    for block in enc.encoder.block:
        bias = block.layer[0].SelfAttention.relative_attention_bias.weight   # [32 buckets, heads]
        bias.zero_()
        bias[1, 0] = 3.0              # key one to the left
        bias[17, 1] = 3.0             # key one to the right
        for b in range(16):
            bias[b, 2] = bias[16 + b, 2] = -0.5 * bucket_distance(b)


class Tagger(nn.Module):
    """Linear probes for pre-training: every token of a phrase must know all of what its phrase says."""
    SIZES = (len(OBJECT_COLORS), len(SHAPES), len(MOTION_NAMES), len(PLACE_NAMES) + 1, len(COLORS), len(PATTERNS))

    def __init__(self, dim):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, n) for n in self.SIZES)

    def forward(self, rows, tags):
        """rows [B,L,D], tags [B,L,6] with -1 for "not asked here" -> loss, share right per tag."""
        loss, right = 0, []
        for k, head in enumerate(self.heads):
            logits, want = head(rows).float(), tags[..., k]
            loss = loss + F.cross_entropy(logits.flatten(0, 1), want.flatten(), ignore_index=-1)
            asked = want >= 0
            right.append(((logits.argmax(-1) == want) & asked).sum() / asked.sum().clamp(min=1))
        return loss, torch.stack(right)


@torch.no_grad()
def attention_logit_std(enc, ids, mask):
    """Standard deviation of the attention logits of each layer (large: attention is one-hot)."""
    stats, hooks = [], []
    for block in enc.encoder.block:
        att = block.layer[0].SelfAttention

        def hook(module, args, kwargs=None, att=att):
            y = args[0].float()
            q, k = (F.linear(y, p.weight.float()).unflatten(-1, (-1, 64)).transpose(1, 2) for p in (att.q, att.k))
            s = q @ k.transpose(-1, -2)
            keep = (mask[:, None, :, None] * mask[:, None, None, :]).bool().expand_as(s)
            stats.append(s[keep].std().item())
        hooks.append(att.register_forward_pre_hook(hook))
    enc(input_ids=ids, attention_mask=mask)
    for h in hooks:
        h.remove()
    return stats


# ---------------------------------------------------------------- transformer

@torch.no_grad()
def init_transformer(dit):
    for name, p in dit.named_parameters():
        if p.ndim == 2:
            nn.init.xavier_uniform_(p)
        elif name.endswith("bias"):
            p.zero_()
    nn.init.xavier_uniform_(dit.patch_embedding.weight.flatten(1))
    nn.init.normal_(dit.condition_embedder.time_proj.weight, std=0.02)
    nn.init.zeros_(dit.proj_out.weight)
    # The ~490 padding rows all give one and the same key, namely to_k's bias. Put it opposite to the
    # queries' mean, or attention starts with 95 % of its mass on padding.
    for block in dit.blocks:
        sign = torch.randint(0, 2, block.attn2.to_q.bias.shape) * 2.0 - 1
        block.attn2.to_q.bias.copy_(0.6 * sign)
        block.attn2.to_k.bias.copy_(-0.02 * sign)


class SelfAttention:
    """The library's self-attention, written so that the compiler can fuse norm and rotation."""

    def __call__(self, attn, x, context=None, mask=None, rotary=None):
        q = attn.norm_q(attn.to_q(x)).unflatten(2, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(x)).unflatten(2, (attn.heads, -1))
        v = attn.to_v(x).unflatten(2, (attn.heads, -1))
        cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]

        def rotate(y):
            a, b = y.float().unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(v.dtype)
        o = F.scaled_dot_product_attention(rotate(q).transpose(1, 2), rotate(k).transpose(1, 2), v.transpose(1, 2))
        return attn.to_out[0](o.transpose(1, 2).flatten(2))


class CrossAttention:
    """context = (rows [B,TOKENS,D], bias [B,TOKENS]): the padding rows are equal, so a few of them with
    ln(how many each stands for) added to their logits give exactly the result of all 512."""

    def __call__(self, attn, x, context=None, mask=None, rotary=None):
        rows, bias = context
        q = attn.norm_q(attn.to_q(x)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        k = attn.norm_k(attn.to_k(rows)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        v = attn.to_v(rows).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        s = (q.to(v.dtype) @ k.to(v.dtype).transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        p = torch.softmax(s + bias[:, None, None, :], -1).to(v.dtype)
        return attn.to_out[0]((p @ v).transpose(1, 2).flatten(2))


def use_fast_attention(dit):
    own, cross = SelfAttention(), CrossAttention()         # shared, so that compiled code is shared too
    for block in dit.blocks:
        block.attn1.processor, block.attn2.processor = own, cross


def dit_forward(dit, x, t, rows, bias):
    """WanTransformer3DModel.forward with shortened text: rows [B,TOKENS,256] and bias [B,TOKENS]."""
    b, _, f, h, w = x.shape
    rope = dit.rope(x)
    y = dit.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
    temb, proj, ctx, _ = dit.condition_embedder(t, rows, None)
    proj = proj.unflatten(1, (6, -1))
    for block in dit.blocks:
        y = block(y, (ctx, bias), proj, rope)
    shift, scale = (dit.scale_shift_table + temb[:, None].float()).chunk(2, 1)
    y = (dit.norm_out(y.float()) * (1 + scale) + shift).type_as(y)
    y = dit.proj_out(y).view(b, f, h // 2, w // 2, 2, 2, 16)
    return y.permute(0, 6, 1, 2, 4, 3, 5).reshape(b, 16, f, h, w)


def text_rows(enc, ids):
    """ids [B,TOKENS] (0 = padding) -> rows with zeros for padding, and the logit bias of CrossAttention."""
    mask = (ids != 0).long()
    rows = enc(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask[..., None]
    n = mask.sum(1, keepdim=True).float()
    bias = torch.where(mask.bool(), 0.0, torch.log((TEXT_LEN - n) / (TOKENS - n)))
    return rows, bias


# ---------------------------------------------------------------- optimiser

class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz steps; equal shapes in one batch. The scale makes an
    update as large as AdamW's at the same rate."""

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                grads = [p.grad for p in params]
                moms = [self.state[p].setdefault("m", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(moms, grads, 1 - group["momentum"])
                g = torch.stack([torch.lerp(a, m, group["momentum"]).flatten(1) for a, m in zip(grads, moms)])
                u = orthogonalise(g).float() * (0.2 * math.sqrt(max(g.shape[1:])))
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, [v.view_as(p) for v, p in zip(u, params)], alpha=-group["lr"])


def orthogonalise(g):
    dtype = torch.bfloat16 if g.is_cuda else torch.float32
    x = g.to(dtype)
    flip = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if flip else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(dtype)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.transpose(1, 2) if flip else x
