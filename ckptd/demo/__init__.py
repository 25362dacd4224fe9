"""The demo: a small cluster of processes on one machine, a node that is killed, and what must hold afterwards."""
