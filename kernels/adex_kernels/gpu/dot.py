"""A matrix product that means the same on a GPU and in Triton's interpreter."""

import triton
import triton.language as tl

# The interpreter keeps bfloat16 as its bits and would multiply those.
WIDEN = bool(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, total, WIDEN: tl.constexpr):
    """total + a @ b, accumulated in float32; float32 operands are not rounded first."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
