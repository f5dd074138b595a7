"""The operations that networks are made of, one function each; `cpu/` holds what the CPU does differently.

* `convolution`: `conv`, `conv_of_doubled`, and `matmul` over the last axis
* `norm`: `group_norm`
* `attention`: `attention`
"""
