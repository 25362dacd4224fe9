/* What the files of the extension `_planes` share. */
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

/* _heads.c */
PyObject *split_heads(PyObject *self, PyObject *args);
PyObject *merge_heads(PyObject *self, PyObject *args);
