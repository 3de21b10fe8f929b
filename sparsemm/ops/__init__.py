"""The six operations of the cache and the chase, one file each.

Every file holds the operation's contract (shapes, dtypes, errors), its checks, its reference implementation in plain
PyTorch, and its calls of the compiled libraries. `python -m sparsemm.ops.build` compiles those. `decode_step` does what
two of them do for every token.
"""

OPERATIONS = ("ragged_decode", "append", "compact", "observe", "argmax_rows", "causal_attention")
