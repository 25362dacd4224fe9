/* Elements to planes and back: plane i holds byte i of every element, after a rotation to the left. A plane to pairs and back.
 *
 * Plain loops, which compilers turn into shuffles of whole vectors. What they do is defined by the NumPy versions in split.py
 * and pairs.py, byte for byte; these are several times as fast.
 */
#include "_planes.h"

#define EACH_2(DO) DO(0) DO(1)
#define EACH_4(DO) EACH_2(DO) DO(2) DO(3)
#define EACH_8(DO) EACH_4(DO) DO(4) DO(5) DO(6) DO(7)
#define PLANE(I) uint8_t *restrict p##I = planes[I];
#define PUT(I) p##I[i] = (uint8_t)(x >> (8 * I));
#define GET(I) | (number)p##I[i] << (8 * I)

/* memcpy is how C reads a number that may not be aligned; it compiles to a load. A turn of 0 must not shift by all bits. */
#define ELEMENTS_OF(WIDTH, NUMBER)                                                                                       \
    FOR_THIS_PROCESSOR static void split_##WIDTH(const uint8_t *restrict raw, size_t n, int turn, uint8_t *const *planes) \
    {                                                                                                                    \
        typedef NUMBER number;                                                                                           \
        EACH_##WIDTH(PLANE) for (size_t i = 0; i < n; i++)                                                               \
        {                                                                                                                \
            number x;                                                                                                    \
            memcpy(&x, raw + i * WIDTH, WIDTH);                                                                          \
            x = (number)(x << turn | x >> ((8 * WIDTH - turn) & (8 * WIDTH - 1)));                                       \
            EACH_##WIDTH(PUT)                                                                                            \
        }                                                                                                                \
    }                                                                                                                    \
    FOR_THIS_PROCESSOR static void merge_##WIDTH(uint8_t *restrict raw, size_t n, int turn, uint8_t *const *planes)       \
    {                                                                                                                    \
        typedef NUMBER number;                                                                                           \
        EACH_##WIDTH(PLANE) for (size_t i = 0; i < n; i++)                                                               \
        {                                                                                                                \
            number x = (number)(0 EACH_##WIDTH(GET));                                                                    \
            x = (number)(x >> turn | x << ((8 * WIDTH - turn) & (8 * WIDTH - 1)));                                       \
            memcpy(raw + i * WIDTH, &x, WIDTH);                                                                          \
        }                                                                                                                \
    }

ELEMENTS_OF(2, uint16_t)
ELEMENTS_OF(4, uint32_t)
ELEMENTS_OF(8, uint64_t)

#define MAX_WIDTH 8

/* Run one of the loops over these buffers without the GIL. -1 with an exception, having touched nothing, unless all fits. */
static int work(Py_buffer *raw, int turn, Py_buffer *planes, Py_ssize_t width, int merging)
{
    uint8_t *at[MAX_WIDTH];
    if (width != 2 && width != 4 && width != 8)
        return PyErr_Format(PyExc_ValueError, "elements have 2, 4 or 8 bytes, not %zd", width), -1;
    for (Py_ssize_t i = 0; i < width; i++) {
        at[i] = planes[i].buf;
        if (planes[i].len != raw->len / width || raw->len % width)
            return PyErr_Format(PyExc_ValueError, "%zd bytes make no %zd planes of %zd", raw->len, width, planes[i].len), -1;
    }
    if (turn != 0 && turn != 1)
        return PyErr_Format(PyExc_ValueError, "elements are rotated by 0 or 1 bit, not %d", turn), -1;
    size_t n = (size_t)(raw->len / width);
    Py_BEGIN_ALLOW_THREADS
    if (merging)
        (width == 2 ? merge_2 : width == 4 ? merge_4 : merge_8)(raw->buf, n, turn, at);
    else
        (width == 2 ? split_2 : width == 4 ? split_4 : split_8)(raw->buf, n, turn, at);
    Py_END_ALLOW_THREADS
    return 0;
}

static PyObject *call(PyObject *args, int merging)
{
    PyObject *raw_object, *tuple;
    int turn, failed = -1;
    Py_buffer raw, planes[MAX_WIDTH];
    if (!PyArg_ParseTuple(args, "OiO!", &raw_object, &turn, &PyTuple_Type, &tuple))
        return NULL;
    Py_ssize_t width = PyTuple_GET_SIZE(tuple), held = 0;
    if (width > MAX_WIDTH)
        return PyErr_Format(PyExc_ValueError, "elements have at most %d bytes, not %zd", MAX_WIDTH, width);
    if (PyObject_GetBuffer(raw_object, &raw, merging ? PyBUF_WRITABLE : PyBUF_SIMPLE))
        return NULL;
    while (held < width &&
           !PyObject_GetBuffer(PyTuple_GET_ITEM(tuple, held), &planes[held], merging ? PyBUF_SIMPLE : PyBUF_WRITABLE))
        held++;
    if (held == width)
        failed = work(&raw, turn, planes, width, merging);
    while (held)
        PyBuffer_Release(&planes[--held]);
    PyBuffer_Release(&raw);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *split(PyObject *self, PyObject *args)
{
    return call(args, 0);
}

static PyObject *merge(PyObject *self, PyObject *args)
{
    return call(args, 1);
}

#define ASIDE 15
#define PIECE 512 /* bytes looked at for one that is aside before each of them is */

/* Distances from base, those that are no less than span as ASIDE; nonzero if there is one. */
FOR_THIS_PROCESSOR static int distances(
    const uint8_t *restrict from, size_t n, uint8_t base, uint8_t span, uint8_t *restrict to)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t distance = (uint8_t)(from[i] - base), out = distance >= span ? 0xff : 0;
        to[i] = (uint8_t)((distance | out) & ASIDE);
        any |= out;
    }
    return any;
}

FOR_THIS_PROCESSOR static void join(uint8_t *restrict low, const uint8_t *restrict high, size_t n)
{
    for (size_t i = 0; i < n; i++)
        low[i] = (uint8_t)(low[i] | high[i] << 4);
}

/* The lower or upper half of each pair, back to bytes; nonzero if one is aside. With a constant shift vectors are of bytes. */
#define PART(NAME, SHIFT)                                                                                                     \
    FOR_THIS_PROCESSOR static int NAME(const uint8_t *restrict pairs, size_t n, uint8_t base, uint8_t *restrict to)           \
    {                                                                                                                         \
        uint8_t any = 0;                                                                                                      \
        for (size_t i = 0; i < n; i++) {                                                                                      \
            uint8_t distance = (uint8_t)(pairs[i] >> SHIFT & ASIDE);                                                          \
            to[i] = (uint8_t)(base + distance);                                                                               \
            any |= (uint8_t)(distance + 1);                                                                                   \
        }                                                                                                                     \
        return any & (ASIDE + 1);                                                                                             \
    }
PART(part_low, 0)
PART(part_high, 4)

/* A list of the bytes that are no distance: of those of the first half, then of those of the second. */
typedef struct {
    uint8_t *at, *end;
} Aside;

/* The first place from i on, or n, where a half is ASIDE: eight at once, for they are rare. Only ASIDE and 1 make 16. */
static size_t next_aside(const uint8_t *pairs, size_t i, size_t n, int shift)
{
    const uint64_t ones = 0x0101010101010101, halves = ASIDE * ones;
    uint64_t eight;
    for (; i + 8 <= n; i += 8) {
        memcpy(&eight, pairs + i, 8);
        if (((eight >> shift & halves) + ones) & (halves + ones))
            break;
    }
    while (i < n && (pairs[i] >> shift & ASIDE) != ASIDE)
        i++;
    return i;
}

static int put_aside(Aside *aside, const uint8_t *plane, const uint8_t *distance, size_t n)
{
    for (size_t i = next_aside(distance, 0, n, 0); i < n; i = next_aside(distance, i + 1, n, 0)) {
        if (aside->at == aside->end)
            return -1;
        *aside->at++ = plane[i];
    }
    return 0;
}

/* Two passes, one for each half, so that what is aside comes in order. -1 if there is too much of it. */
static Py_ssize_t pair_all(const uint8_t *plane, size_t n, uint8_t base, uint8_t span, uint8_t *pairs, Aside aside)
{
    size_t half = (n + 1) / 2;
    uint8_t *begin = aside.at, some[PIECE];
    for (size_t i = 0; i < half; i += PIECE) {
        size_t count = half - i < PIECE ? half - i : PIECE;
        if (distances(plane + i, count, base, span, pairs + i) && put_aside(&aside, plane + i, pairs + i, count))
            return -1;
    }
    for (size_t i = 0; i < n - half; i += PIECE) {
        size_t count = n - half - i < PIECE ? n - half - i : PIECE;
        if (distances(plane + half + i, count, base, span, some) && put_aside(&aside, plane + half + i, some, count))
            return -1;
        join(pairs + i, some, count);
    }
    return aside.at - begin;
}

static int unpair_half(const uint8_t *pairs, size_t n, int shift, uint8_t base, Aside *aside, uint8_t *plane)
{
    for (size_t i = 0; i < n; i += PIECE) {
        size_t count = n - i < PIECE ? n - i : PIECE;
        if (!(shift ? part_high : part_low)(pairs + i, count, base, plane + i))
            continue;
        for (size_t j = next_aside(pairs, i, i + count, shift); j < i + count; j = next_aside(pairs, j + 1, i + count, shift)) {
            if (aside->at == aside->end)
                return -1;
            plane[j] = *aside->at++;
        }
    }
    return 0;
}

static PyObject *pair(PyObject *self, PyObject *args)
{
    Py_buffer plane, pairs, aside;
    unsigned char base, span;
    if (!PyArg_ParseTuple(args, "y*bbw*w*", &plane, &base, &span, &pairs, &aside))
        return NULL;
    int fits = pairs.len == (plane.len + 1) / 2 && span > 0 && span <= ASIDE;
    Py_ssize_t count = 0;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        Aside into = {aside.buf, (uint8_t *)aside.buf + aside.len};
        count = pair_all(plane.buf, (size_t)plane.len, base, span, pairs.buf, into);
        Py_END_ALLOW_THREADS
    } else
        PyErr_Format(PyExc_ValueError, "no pairs: %zd of %zd bytes, span %d", pairs.len, plane.len, span);
    PyBuffer_Release(&plane);
    PyBuffer_Release(&pairs);
    PyBuffer_Release(&aside);
    return fits ? PyLong_FromSsize_t(count) : NULL;
}

static PyObject *unpair(PyObject *self, PyObject *args)
{
    Py_buffer pairs, aside, plane;
    unsigned char base;
    if (!PyArg_ParseTuple(args, "y*by*w*", &pairs, &base, &aside, &plane))
        return NULL;
    int fits = pairs.len == (plane.len + 1) / 2;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        size_t n = (size_t)plane.len, half = (n + 1) / 2;
        Aside from = {aside.buf, (uint8_t *)aside.buf + aside.len};
        fits = !unpair_half(pairs.buf, half, 0, base, &from, plane.buf) &&
               !unpair_half(pairs.buf, n - half, 4, base, &from, (uint8_t *)plane.buf + half) && from.at == from.end;
        Py_END_ALLOW_THREADS
    }
    if (!fits)
        PyErr_Format(PyExc_ValueError, "%zd pairs and %zd bytes aside make no %zd", pairs.len, aside.len, plane.len);
    PyBuffer_Release(&pairs);
    PyBuffer_Release(&aside);
    PyBuffer_Release(&plane);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"split", split, METH_VARARGS, "split(raw, turn, planes): fill the planes with the bytes of raw's elements."},
    {"merge", merge, METH_VARARGS, "merge(raw, turn, planes): fill raw with elements made of the planes' bytes."},
    {"pair", pair, METH_VARARGS, "pair(plane, base, span, pairs, aside): fill the pairs; bytes put aside, -1 if too many."},
    {"unpair", unpair, METH_VARARGS, "unpair(pairs, base, aside, plane): fill the plane."},
    {"split_heads", split_heads, METH_VARARGS, "split_heads(raw, base, heads, tails, aside): see heads.py."},
    {"merge_heads", merge_heads, METH_VARARGS, "merge_heads(raw, base, heads, tails, aside): see heads.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "ckptd.codec._planes", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__planes(void)
{
    return PyModuleDef_Init(&module);
}
