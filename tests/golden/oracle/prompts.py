"""Prompt cleaning by diffusers and ftfy, token ids by sentencepiece, and the small spiece.model of the tests."""
import io
import itertools

import sentencepiece
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from . import strings

TEXT_LEN = 512
EOS = 1


def encode(processor, text):
    """(ids, length of the whole text) as T5's tokenizer makes them: pieces, eos, at most 512 with the eos kept."""
    ids = processor.encode(text)
    return ids[: TEXT_LEN - 1] + [EOS], len(ids) + 1


class Tokenizer:
    """What WanPipeline calls as its tokenizer.

    transformers' own T5 classes need a tokenizer.json beside spiece.model; the engine reads spiece.model alone."""

    def __init__(self, path):
        self.processor = sentencepiece.SentencePieceProcessor(model_file=path)

    def __call__(self, prompts, max_length, **_options):
        ids = torch.zeros(len(prompts), max_length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(prompts):
            one, _ = encode(self.processor, text)
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        out = type("Batch", (), {})()
        out.input_ids, out.attention_mask = ids, mask
        return out


def train_spiece(path):
    """A unigram model with the ids and flags of the real one: pad 0, eos 1, bos 2, unk 3, byte fallback, NMT_NFKC."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain.from_iterable(itertools.repeat(list(strings.corpus()), 3)),
        model_writer=model, model_type="unigram", vocab_size=1800, hard_vocab_limit=False, character_coverage=0.999,
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="</s>",
        bos_piece="<s>", unk_piece="<unk>", normalization_rule_name="nmt_nfkc", num_threads=1, minloglevel=2,
        user_defined_symbols=[], max_sentence_length=8192)
    with open(path, "wb") as f:
        f.write(model.getvalue())


def golden(spiece):
    """One record per string: what goes in, what cleaning makes of it, and its ids."""
    processor = sentencepiece.SentencePieceProcessor(model_file=spiece)
    records = []
    for group, text in strings.cases():
        clean = prompt_clean(text)
        ids, total = encode(processor, clean)
        records.append({"group": group, "in": text, "clean": clean, "total": total, "ids": ids})
    return records
