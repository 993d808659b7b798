#include "kvfs/weights.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static const struct {
    const char *extension, *label;
} extensions[] = {
    {"bin", "weights by its name (PyTorch, usually)"},
    {"pt", "PyTorch weights"},
    {"pth", "PyTorch weights"},
    {"ckpt", "a checkpoint"},
    {"pkl", "a pickle"},
    {"pickle", "a pickle"},
    {"joblib", "a pickle"},
    {"gguf", "GGUF weights"},
    {"ggml", "GGML weights"},
    {"llamafile", "GGUF weights"},
    {"onnx", "ONNX weights"},
    {"onnx_data", "ONNX weights"},
    {"ort", "ONNX weights"},
    {"h5", "HDF5 weights"},
    {"hdf5", "HDF5 weights"},
    {"keras", "Keras weights"},
    {"msgpack", "Flax weights"},
    {"npz", "NumPy arrays"},
    {"npy", "NumPy arrays"},
    {"tflite", "TensorFlow weights"},
    {"pb", "TensorFlow weights"},
    {"ot", "Rust weights"},
    {"mlmodel", "Core ML weights"},
    {"pte", "ExecuTorch weights"},
    {"engine", "a TensorRT engine"},
    {"plan", "a TensorRT engine"},
    {"nemo", "a NeMo archive"},
};

static const struct {
    size_t offset;
    const char *magic;
    size_t n;
    const char *label;
} magics[] = {
    {0, "GGUF", 4, "GGUF weights"},
    {0, "lmgg", 4, "GGML weights"},
    {0, "tjgg", 4, "GGML weights"},
    {0, "fmgg", 4, "GGML weights"},
    {0, "PK\x03\x04", 4, "a zip archive (PyTorch and NumPy use it)"},
    {0, "PK\x05\x06", 4, "a zip archive"},
    {0, "\x80\x02", 2, "a pickle"},
    {0, "\x80\x03", 2, "a pickle"},
    {0, "\x80\x04", 2, "a pickle"},
    {0, "\x80\x05", 2, "a pickle"},
    {0, "\x89HDF\r\n\x1a\n", 8, "HDF5 weights"},
    {0, "\x93NUMPY", 6, "NumPy arrays"},
    {4, "TFL3", 4, "TensorFlow weights"},
    {257, "ustar", 5, "a tar archive"},
    {0, "\x1f\x8b", 2, "a gzip archive"},
    {0, "\x28\xb5\x2f\xfd", 4, "a zstd archive"},
    {0,
     "\xfd"
     "7zXZ",
     5, "an xz archive"},
};

static const char *extension_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    return dot && dot != name ? dot + 1 : "";
}

static const char *label_by_name(const char *extension)
{
    for (size_t i = 0; i < sizeof(extensions) / sizeof(*extensions); i++) {
        if (strcasecmp(extension, extensions[i].extension) == 0) {
            return extensions[i].label;
        }
    }
    return NULL;
}

static const char *label_by_magic(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < sizeof(magics) / sizeof(*magics); i++) {
        if (magics[i].offset + magics[i].n <= n &&
            memcmp(p + magics[i].offset, magics[i].magic, magics[i].n) == 0) {
            return magics[i].label;
        }
    }
    return NULL;
}

/* Whether the first bytes look like text; a character cut off at the end does not count. */
static bool is_text(const uint8_t *p, size_t n)
{
    for (size_t cut = 0; cut < 4 && cut <= n; cut++) {
        if (ct_utf8_ok(p, n - cut)) {
            return !memchr(p, '\0', n - cut);
        }
    }
    return false;
}

static void weights(struct kvfs_recognised *out, const char *label)
{
    out->what = KVFS_WHAT_WEIGHTS;
    (void)snprintf(out->why, sizeof(out->why), "%s", label);
}

static int by_first_bytes(struct ct_source *s, const struct ct_version *v, const char *path,
                          struct kvfs_recognised *out, struct ct_err *err)
{
    uint8_t head[4096];
    size_t n = v->size < sizeof(head) ? (size_t)v->size : sizeof(head);
    if (ct_source_read(s, head, n, 0, v, err)) {
        return -1;
    }
    const char *extension = extension_of(path);
    bool ours =
        strcasecmp(extension, "safetensors") == 0 || strcasecmp(extension, "cryptotensors") == 0;
    const char *label = label_by_magic(head, n);
    out->what = KVFS_WHAT_SIDE;
    if (ours) {
        static const char lfs[] = "version https://git-lfs";
        bool pointer = n >= sizeof(lfs) - 1 && memcmp(head, lfs, sizeof(lfs) - 1) == 0;
        out->what = KVFS_WHAT_BROKEN;
        (void)snprintf(out->why, sizeof(out->why), "%s",
                       pointer ? "only a pointer of git-lfs (git lfs pull)"
                               : "no safetensors file, in spite of its name");
    } else if (label || (label = label_by_name(extension))) {
        weights(out, label);
    } else if (v->size > KVFS_UNKNOWN_MAX && !is_text(head, n)) {
        weights(out, "large and of unknown kind, possibly weights");
    }
    return 0;
}

/* Measured, and what is to be encrypted read as strictly as a model: one pass does not see that
 * the file is cut, or longer than its tensors. */
static int measure(struct ct_source *s, const struct ct_version *v, struct ct_measure *out,
                   struct ct_err *err)
{
    struct ct_header *h = NULL;
    if (ct_header_measure(s, v, out, err) ||
        (out->kind == CT_KIND_PLAIN && ct_header_read(s, v, NULL, &h, err))) {
        return -1;
    }
    ct_header_free(h);
    return 0;
}

int kvfs_recognise(struct ct_source *s, const struct ct_version *v, const char *path,
                   struct kvfs_recognised *out, struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    *out = (struct kvfs_recognised){.what = KVFS_WHAT_SIDE};
    if (measure(s, v, &out->measure, &why)) {
        if (why.code == CT_IO || why.code == CT_STALE || why.code == CT_NOMEM) {
            if (err) {
                *err = why;
            }
            return -1;
        }
        out->what = KVFS_WHAT_BROKEN;
        memcpy(out->why, why.msg, sizeof(out->why));
        return 0;
    }
    if (out->measure.kind == CT_KIND_OTHER) {
        return by_first_bytes(s, v, path, out, err);
    }
    out->what = out->measure.kind == CT_KIND_ENCRYPTED ? KVFS_WHAT_ENCRYPTED : KVFS_WHAT_PLAIN;
    return 0;
}
