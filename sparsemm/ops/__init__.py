"""The six operations of the cache and the chase, one file each.

Each file holds an operation's contract (shapes, dtypes, errors), its checks, its reference implementation in plain
PyTorch, and its calls of the compiled libraries, which `python -m sparsemm.ops.build` compiles. `decode_step` joins two
operations for every decoded token.
"""

OPERATIONS = ("ragged_decode", "append", "compact", "observe", "argmax_rows", "causal_attention")
