/* The only C++ of the project: libsentencepiece behind five C functions. No exception leaves this file.
 *
 * The library's file reader is not used: the model is read with hs_file_read, so that a missing or oversized file fails
 * with our message. What SentencePiece treats as text is text: "</s>" in a prompt is five ordinary characters, not an
 * id.
 */
#include "tokenizer.h"
#include "config.h"

#if HS_HAVE_TOKENIZER

#include <algorithm>
#include <new>
#include <sentencepiece_processor.h>
#include <string>
#include <vector>

namespace {

const size_t MAX_MODEL = 64u << 20; /* bytes; umt5's has 4.6 MB */
const int EOS = 1;                  /* of every T5: <pad> is 0, </s> is 1 */

struct bytes {
    const unsigned char *p;
    size_t n;
};

bool read_varint(bytes *b, uint64_t *ret) {
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && b->n; shift += 7) {
        const unsigned char c = *b->p++;
        b->n--;
        v |= (uint64_t)(c & 127) << shift;
        if (c < 128) {
            *ret = v;
            return true;
        }
    }
    return false;
}

/* Calls check on each length-delimited field `number` of a protobuf message; false if it is malformed or one fails. */
template <typename F> bool each_field(bytes msg, unsigned number, F check) {
    while (msg.n) {
        uint64_t key, size = 0;
        /* protobuf keeps 32 bits of a key, which could make another field of it than this reads */
        if (!read_varint(&msg, &key) || key > UINT32_MAX) return false;
        switch (key & 7) {
        case 0:
            if (!read_varint(&msg, &size)) return false;
            size = 0;
            break;
        case 1: size = 8; break;
        case 2:
            if (!read_varint(&msg, &size)) return false;
            break;
        case 5: size = 4; break;
        default: return false;
        }
        if (size > msg.n) return false;
        if (key == (number << 3 | 2) && !check(bytes{msg.p, (size_t)size})) return false;
        msg.p += size;
        msg.n -= (size_t)size;
    }
    return true;
}

uint32_t u32(const unsigned char *p) {
    return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The character map is a double-array trie of 32-bit units and a block of strings (spec wan.md 2.3), which the library
 * follows without looking: here every step from every unit is shown to stay inside. Not the text, but whoever made the
 * file could otherwise make it read anywhere. */
bool charsmap_ok(bytes map) {
    if (!map.n) return true;
    if (map.n < 4) return false;
    const size_t size = u32(map.p), units = size / 4;
    if (size % 4 || size > map.n - 4 || !units) return false;
    const unsigned char *unit = map.p + 4;
    const size_t strings = map.n - 4 - size;
    for (size_t i = 0; i < units; i++) {
        const uint32_t u = u32(unit + 4 * i);
        if (i && u >> 31) continue; /* a value, not a node; the first unit is the root whatever it says */
        const size_t next = i ^ (size_t)((u >> 10) << ((u & 512) >> 6));
        if ((next | 255) >= units) return false;
        if ((u & 256) && (u32(unit + 4 * next) & 0x7fffffffu) >= strings) return false;
    }
    return true;
}

/* ModelProto { 3: NormalizerSpec { 2: precompiled_charsmap } } */
bool charsmaps_ok(bytes model) {
    return each_field(model, 3, [](bytes normalizer) { return each_field(normalizer, 2, charsmap_ok); });
}

} // namespace

struct hs_tokenizer {
    sentencepiece::SentencePieceProcessor sp;
};

int hs_tokenizer_open_bytes(const void *data, size_t len, const char *label, hs_tokenizer **ret, hs_err *err) {
    if (len > MAX_MODEL)
        return hs_fail(err, HS_EFORMAT, "%s: a tokenizer of %zu bytes, expected at most %zu", label, len, MAX_MODEL);
    /* before the library sees it: loading already encodes the samples that a model brings to test itself */
    if (!charsmaps_ok(bytes{(const unsigned char *)data, len}))
        return hs_fail(err, HS_EFORMAT,
                       "%s is not a SentencePiece model, or damaged: broken off, or its character map points outside "
                       "itself; fetch it again",
                       label);
    int rc = HS_OK;
    void *room = hs_alloc(sizeof(hs_tokenizer));
    hs_tokenizer *t = nullptr;
    try {
        if (!room) throw std::bad_alloc();
        t = new (room) hs_tokenizer;
        const auto status = t->sp.LoadFromSerializedProto(absl::string_view((const char *)data, len));
        if (!status.ok())
            rc = hs_fail(err, HS_EFORMAT, "%s is not a SentencePiece model: %s", label, status.ToString().c_str());
        else if (t->sp.eos_id() != EOS)
            rc = hs_fail(err, HS_EFORMAT, "%s: end of sequence has id %d, expected %d as in T5 vocabularies", label,
                         t->sp.eos_id(), EOS);
    } catch (const std::bad_alloc &) {
        rc = hs_fail(err, HS_ENOMEM, "no memory for the tokenizer %s", label);
    } catch (const std::exception &e) {
        rc = hs_fail(err, HS_EFORMAT, "%s: %s", label, e.what());
    }
    if (rc) {
        if (t) t->~hs_tokenizer();
        hs_free(room);
        return rc;
    }
    *ret = t;
    return HS_OK;
}

int hs_tokenizer_open(const char *spiece_path, hs_tokenizer **ret, hs_err *err) {
    char *data = nullptr;
    size_t len = 0;
    int rc = hs_file_read(spiece_path, MAX_MODEL, &data, &len, err);
    if (!rc) rc = hs_tokenizer_open_bytes(data, len, spiece_path, ret, err);
    hs_free(data);
    return rc;
}

void hs_tokenizer_close(hs_tokenizer *t) {
    if (!t) return;
    t->~hs_tokenizer();
    hs_free(t);
}

int hs_tokenizer_vocab(const hs_tokenizer *t) {
    return t->sp.GetPieceSize();
}

int hs_tokenizer_encode(const hs_tokenizer *t, const char *clean, int max_ids, int32_t *ret_ids, int *ret_n,
                        int *ret_total, hs_err *err) {
    if (max_ids < 1) return hs_fail(err, HS_EINVAL, "room for %d token ids, expected at least 1", max_ids);
    try {
        std::vector<int> ids;
        const auto status = t->sp.Encode(clean, &ids);
        if (!status.ok()) return hs_fail(err, HS_EINVAL, "cannot tokenize the prompt: %s", status.ToString().c_str());
        const int kept = (int)std::min(ids.size(), (size_t)max_ids - 1);
        std::copy(ids.begin(), ids.begin() + kept, ret_ids);
        ret_ids[kept] = EOS;
        *ret_n = kept + 1;
        *ret_total = (int)ids.size() + 1;
        return HS_OK;
    } catch (const std::bad_alloc &) {
        return hs_fail(err, HS_ENOMEM, "no memory to tokenize the prompt");
    } catch (const std::exception &e) {
        return hs_fail(err, HS_EINVAL, "cannot tokenize the prompt: %s", e.what());
    }
}

#else

int hs_tokenizer_open_bytes(const void *, size_t, const char *label, hs_tokenizer **ret, hs_err *err) {
    return hs_tokenizer_open(label, ret, err);
}

int hs_tokenizer_open(const char *spiece_path, hs_tokenizer **, hs_err *err) {
    return hs_fail(err, HS_ENOTSUP,
                   "%s cannot be used: this build has no SentencePiece; install libsentencepiece-dev and "
                   "build again",
                   spiece_path);
}

void hs_tokenizer_close(hs_tokenizer *) {}
int hs_tokenizer_vocab(const hs_tokenizer *) {
    return 0;
}

int hs_tokenizer_encode(const hs_tokenizer *, const char *, int, int32_t *, int *, int *, hs_err *err) {
    return hs_fail(err, HS_ENOTSUP, "this build has no SentencePiece");
}

#endif
