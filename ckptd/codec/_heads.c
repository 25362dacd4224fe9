/* bf16 to heads and tails, and back. What it does is defined by the NumPy version in heads.py, byte for byte. */
#include "_planes.h"

#define BLOCK 256 /* elements; each quarter of a block is a row below */
#define ROW (BLOCK / 4)
#define TAILS_BYTES (3 * ROW)
#define ASIDE 255
#define TAIL 63 /* six bits */
#define VALUES 1024 /* of a head: ten bits */

/* Heads as distances from base, those that are too far as ASIDE; nonzero if there is one. */
FOR_THIS_PROCESSOR static int split_block(
    const uint8_t *restrict raw, uint16_t base, uint8_t *restrict heads, uint8_t *restrict tails)
{
    uint16_t elements[BLOCK], any = 0;
    uint8_t low[BLOCK];
    memcpy(elements, raw, sizeof elements);
    for (int i = 0; i < BLOCK; i++) {
        uint16_t turned = (uint16_t)(elements[i] << 1 | elements[i] >> 15);
        uint16_t distance = (uint16_t)(((turned >> 6) - base) & (VALUES - 1));
        any |= (uint16_t)(distance >= ASIDE);
        heads[i] = (uint8_t)(distance >= ASIDE ? ASIDE : distance);
        low[i] = (uint8_t)(turned & TAIL);
    }
    for (int i = 0; i < ROW; i++) {
        uint8_t last = low[3 * ROW + i];
        tails[i] = (uint8_t)(low[i] | last << 6);
        tails[ROW + i] = (uint8_t)(low[ROW + i] | last >> 2 << 6);
        tails[2 * ROW + i] = (uint8_t)(low[2 * ROW + i] | last >> 4 << 6);
    }
    return any;
}

FOR_THIS_PROCESSOR static int merge_block(
    uint8_t *restrict raw, uint16_t base, const uint8_t *restrict heads, const uint8_t *restrict tails)
{
    uint16_t elements[BLOCK];
    uint8_t low[BLOCK], any = 0;
    for (int i = 0; i < TAILS_BYTES; i++)
        low[i] = tails[i] & TAIL;
    for (int i = 0; i < ROW; i++)
        low[3 * ROW + i] = (uint8_t)(tails[i] >> 6 | tails[ROW + i] >> 6 << 2 | tails[2 * ROW + i] >> 6 << 4);
    for (int i = 0; i < BLOCK; i++) {
        uint16_t turned = (uint16_t)((heads[i] + base) << 6 | low[i]);
        elements[i] = (uint16_t)(turned >> 1 | turned << 15);
    }
    for (int i = 0; i < BLOCK; i++)
        any |= (uint8_t)(heads[i] == ASIDE);
    memcpy(raw, elements, sizeof elements);
    return any;
}

/* Heads that are aside, as little-endian u16, in the order of their elements. */
typedef struct {
    uint8_t *at, *end;
} Aside;

static int put_aside(Aside *aside, const uint8_t *raw, const uint8_t *heads)
{
    for (int i = 0; i < BLOCK; i++) {
        if (heads[i] != ASIDE)
            continue;
        if (aside->end - aside->at < 2)
            return -1;
        uint16_t x;
        memcpy(&x, raw + 2 * i, 2);
        x = (uint16_t)((uint16_t)(x << 1 | x >> 15) >> 6);
        memcpy(aside->at, &x, 2);
        aside->at += 2;
    }
    return 0;
}

static int take_aside(Aside *aside, uint8_t *raw, uint16_t base, const uint8_t *heads)
{
    for (int i = 0; i < BLOCK; i++) {
        if (heads[i] != ASIDE)
            continue;
        uint16_t head, x;
        if (aside->end - aside->at < 2)
            return -1;
        memcpy(&head, aside->at, 2);
        aside->at += 2;
        memcpy(&x, raw + 2 * i, 2);
        x = (uint16_t)(head << 6 | ((uint16_t)(x << 1 | x >> 15) & TAIL));
        x = (uint16_t)(x >> 1 | x << 15);
        memcpy(raw + 2 * i, &x, 2);
    }
    return 0;
}

typedef struct {
    Py_buffer raw, heads, tails, aside;
    unsigned short base;
} Given;

static void release(Given *given)
{
    PyBuffer_Release(&given->raw);
    PyBuffer_Release(&given->heads);
    PyBuffer_Release(&given->tails);
    PyBuffer_Release(&given->aside);
}

/* Nonzero if all sizes fit; else an exception is set and nothing is held. */
static int take(PyObject *args, const char *format, Given *given)
{
    if (!PyArg_ParseTuple(args, format, &given->raw, &given->base, &given->heads, &given->tails, &given->aside))
        return 0;
    Py_ssize_t n = given->heads.len;
    if (n % BLOCK == 0 && given->raw.len == 2 * n && given->tails.len == n / 4 * 3 && given->base < VALUES)
        return 1;
    PyErr_Format(PyExc_ValueError, "%zd heads and %zd bytes of tails don't make %zd bytes: base %d", n, given->tails.len,
        given->raw.len, given->base);
    release(given);
    return 0;
}

PyObject *split_heads(PyObject *self, PyObject *args)
{
    Given given;
    if (!take(args, "y*Hw*w*w*", &given))
        return NULL;
    const uint8_t *raw = given.raw.buf;
    uint8_t *heads = given.heads.buf, *tails = given.tails.buf;
    Aside aside = {given.aside.buf, (uint8_t *)given.aside.buf + given.aside.len};
    size_t blocks = (size_t)given.heads.len / BLOCK;
    int full = 0;
    Py_BEGIN_ALLOW_THREADS
    for (size_t b = 0; b < blocks && !full; b++, raw += 2 * BLOCK, heads += BLOCK, tails += TAILS_BYTES)
        if (split_block(raw, given.base, heads, tails))
            full = put_aside(&aside, raw, heads);
    Py_END_ALLOW_THREADS
    Py_ssize_t count = full ? -1 : (aside.at - (uint8_t *)given.aside.buf) / 2;
    release(&given);
    return PyLong_FromSsize_t(count);
}

PyObject *merge_heads(PyObject *self, PyObject *args)
{
    Given given;
    if (!take(args, "w*Hy*y*y*", &given))
        return NULL;
    uint8_t *raw = given.raw.buf;
    const uint8_t *heads = given.heads.buf, *tails = given.tails.buf;
    Aside aside = {given.aside.buf, (uint8_t *)given.aside.buf + given.aside.len};
    size_t blocks = (size_t)given.heads.len / BLOCK;
    int missing = 0;
    Py_BEGIN_ALLOW_THREADS
    for (size_t b = 0; b < blocks && !missing; b++, raw += 2 * BLOCK, heads += BLOCK, tails += TAILS_BYTES)
        if (merge_block(raw, given.base, heads, tails))
            missing = take_aside(&aside, raw, given.base, heads);
    Py_END_ALLOW_THREADS
    if (missing || aside.at != aside.end)
        PyErr_Format(PyExc_ValueError, "%zd bytes aside aren't what is missing", given.aside.len);
    int failed = missing || aside.at != aside.end;
    release(&given);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}
