"""What the frozen weights of a fused step are kept as: in the format of the products, in fp8, in NF4.

`weight` says what each of them can do; `formats` makes the one that a precision names.
"""
