/* Elements to planes and back: plane i holds byte i of every element, after a rotation to the left.
 *
 * Plain loops, which compilers turn into shuffles of whole vectors. What they do is defined by the NumPy version in split.py,
 * byte for byte; this one is several times as fast.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if PY_BIG_ENDIAN
#error "elements are read as little-endian numbers here; NumPy does it on this machine"
#endif

/* One version for each generation of vector units; the loader takes the one that fits the processor. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_THIS_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FOR_THIS_PROCESSOR
#endif

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

static PyMethodDef functions[] = {
    {"split", split, METH_VARARGS, "split(raw, turn, planes): fill the planes with the bytes of raw's elements."},
    {"merge", merge, METH_VARARGS, "merge(raw, turn, planes): fill raw with elements made of the planes' bytes."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "ckptd.codec._planes", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__planes(void)
{
    return PyModuleDef_Init(&module);
}
