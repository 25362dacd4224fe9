/* Copies past the caches.
 *
 * memcpy reads a line of its destination from memory before it writes it, and what it writes pushes out of the caches what the
 * training had there. A snapshot is bigger than the caches as a rule, and is read next by another process: its lines are written
 * straight to memory. (glibc does the same, but only from a hundred megabytes a call on.) Figures: docs/decisions/0028.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define LINE 64
#define STREAMED (256 << 10) /* bytes; fewer may be wanted again while they are in the cache */
#define AHEAD 512            /* bytes; as far as the source is asked for before it is read: past its end that does nothing */

static void copy_bytes(char *restrict to, const char *restrict from, size_t count)
{
#ifdef __SSE2__
    if (count >= STREAMED) {
        size_t head = (size_t)(-(uintptr_t)to & (LINE - 1));
        memcpy(to, from, head);
        to += head, from += head, count -= head;
        for (; count >= LINE; to += LINE, from += LINE, count -= LINE) {
            const __m128i *in = (const __m128i *)from;
            __m128i *out = (__m128i *)to;
            _mm_prefetch(from + AHEAD, _MM_HINT_NTA);
            __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
            __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
            _mm_stream_si128(out, a);
            _mm_stream_si128(out + 1, b);
            _mm_stream_si128(out + 2, c);
            _mm_stream_si128(out + 3, d);
        }
        _mm_sfence(); /* the seal that says they are there must not overtake them */
    }
#endif
    memcpy(to, from, count);
}

static PyObject *copy(PyObject *self, PyObject *args)
{
    unsigned long long to, from, count;
    if (!PyArg_ParseTuple(args, "KKK", &to, &from, &count))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    copy_bytes((char *)(uintptr_t)to, (const char *)(uintptr_t)from, (size_t)count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"copy", copy, METH_VARARGS, "Copy count bytes from one address to another; they must not overlap."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_stream", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__stream(void)
{
    return PyModuleDef_Init(&definition);
}
